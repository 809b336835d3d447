"""Is the predicted power that of simulated sweeps?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from benchmarks.uncertainty import Design, simulate, simulate_spread
from speechft_ray.report.power import Spread, compute_power, find_seeds

SWEEPS = 1000


@pytest.mark.parametrize(
    "design",
    [
        Design(speakers=20, difference=20.0),
        Design(speakers=20, tuning=4.0, probe=4.0, error=4.0, difference=10.0),
        Design(speakers=20, tuning=0.0, probe=4.0, error=4.0, difference=8.0),
        Design(speakers=20, tuning=2.0, probes=5, difference=15.0),
    ],
    ids=str,
)
def test_predicted_power_is_that_of_simulated_sweeps(design: Design) -> None:
    """Within 5 points: the spread comes from sweeps with three seeds, the power from others."""
    spread = simulate_spread(replace(design, tunings=3), SWEEPS, np.random.default_rng(1))
    for seeds in (2, 5):
        sweeps = simulate(replace(design, tunings=seeds), SWEEPS, np.random.default_rng(2))
        power = 100 * compute_power(design.difference, spread, seeds)
        assert power == pytest.approx(sweeps.power, abs=5), seeds


def test_larger_test_sets_are_predicted_from_smaller_ones() -> None:
    small = Design(speakers=12, error=8.0, tuning=3.0, probe=3.0, difference=12.0)
    large = replace(small, speakers=48, error=4.0, tunings=4)
    spread = simulate_spread(small, SWEEPS, np.random.default_rng(3))
    expected = simulate(large, SWEEPS, np.random.default_rng(4)).power
    assert 100 * compute_power(12.0, spread, 4, 4.0) == pytest.approx(expected, abs=5)


def test_with_speakers_alone_it_is_the_power_of_a_t_test() -> None:
    spread = Spread(4.0, 11.0, 0.0, 0.0, 1e9)
    limit = scipy.stats.t.ppf(0.975, 11)
    expected = scipy.stats.nct.sf(limit, 11, 5 / 2)
    assert compute_power(5.0, spread, 2) == pytest.approx(expected, abs=0.02)


def test_seeds_fall_with_the_difference_and_with_larger_test_sets() -> None:
    spread = Spread(9.0, 47.0, 64.0, 0.0, 1e9)
    needed = [find_seeds(difference, spread) for difference in (5.0, 10.0, 20.0)]
    assert needed[0] is None  # no number of seeds makes up for the few speakers
    assert needed[1] is not None and needed[2] is not None and needed[1] > needed[2]
    # The lowest number with which 80 % of the sweeps see the difference
    for difference, count in ((10.0, needed[1]), (20.0, needed[2])):
        powers = [compute_power(difference, spread, seeds) for seeds in (count - 1, count)]
        assert count == 2 or powers[0] < 0.8 <= powers[1]
    assert needed[1] > 2
    with_more = find_seeds(10.0, spread, 4.0)
    assert with_more is not None and with_more < needed[1]
