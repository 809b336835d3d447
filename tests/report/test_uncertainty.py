"""How often an estimate of a difference covers the truth, by simulation, and its components."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.stats

from benchmarks.uncertainty import Design, simulate
from speechft_ray.report import uncertainty
from speechft_ray.report.effects import count_degrees
from speechft_ray.report.uncertainty import Part, estimate

SWEEPS = 1000
LOW, HIGH = 93.0, 97.0


@pytest.mark.parametrize("probes", [1, 3])
@pytest.mark.parametrize("tunings", [1, 3, 5])
@pytest.mark.parametrize(
    "design",
    [
        Design(speakers=48),
        Design(speakers=10, tuning=4.0),
        Design(speakers=10, tuning=0.0, error=2.0, noise=0.0, tasks=4),
        Design(speakers=300, utterances=2, error=2.0),
        Design(speakers=48, sigma=0.7),
    ],
    ids=str,
)
def test_equal_encoders_are_called_different_in_five_percent_of_sweeps(
    design: Design, tunings: int, probes: int
) -> None:
    """Give or take 2 %, and three standard errors of the simulation."""
    design = Design(**{**vars(design), "tunings": tunings, "probes": probes})
    shares = simulate(design, SWEEPS, np.random.default_rng(11))
    tolerance = 300 * (0.05 * 0.95 / SWEEPS) ** 0.5
    assert shares.false <= 100 - LOW + tolerance
    assert LOW - tolerance <= shares.both
    for alone in (shares.pretrained, shares.stable):
        assert LOW - tolerance <= alone <= HIGH + tolerance


def test_the_earlier_rule_would_fail_this_simulation() -> None:
    for tunings, probes, least in ((1, 3, 30), (3, 3, 30), (5, 1, 10)):
        design = Design(tunings=tunings, probes=probes, speakers=10)
        assert simulate(design, SWEEPS, np.random.default_rng(12)).old > least


def test_with_one_seed_it_is_the_t_interval_over_speakers() -> None:
    values = np.random.default_rng(0).normal(3, 2, 12)
    effects = (values - values.mean()) / 12 * (12 / 11) ** 0.5
    part = Part(np.full((1, 1), values.mean()), effects[None, None], 11.0)
    expected = scipy.stats.ttest_1samp(values, 0).confidence_interval()
    assert estimate([part], shared_probes=False).interval() == pytest.approx(tuple(expected))
    wider = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.975)
    assert estimate([part], shared_probes=False).interval(2) == pytest.approx(tuple(wider))


def test_without_noise_of_utterances_it_is_the_t_interval_over_seeds() -> None:
    values, effects = np.random.default_rng(1).normal(3, 2, 5), np.zeros((5, 1, 12))
    part = Part(values[:, None], effects, 11.0)
    expected = scipy.stats.ttest_1samp(values, 0).confidence_interval()
    assert estimate([part], shared_probes=False).interval() == pytest.approx(tuple(expected))
    probes = Part(values[None], np.zeros((1, 5, 12)), 11.0)
    assert estimate([probes], shared_probes=False).interval() == pytest.approx(tuple(expected))


def test_probes_of_the_pretrained_encoder_do_not_average_out_over_fine_tuning_seeds() -> None:
    """Each of five fine-tuning seeds is compared with the same three probes."""
    control = np.array([-8.0, 0.0, 8.0])
    part = Part(np.tile(control, (5, 1)), np.zeros((5, 3, 12)), 11.0)
    shared = estimate([part], shared_probes=True)
    assert float(shared.error) == pytest.approx(8 / 3**0.5)
    assert float(shared.degrees) == pytest.approx(2)
    assert not estimate([part], shared_probes=False).error


def test_speakers_of_two_evaluations_are_added_before_they_are_squared() -> None:
    effects = np.random.default_rng(2).normal(0, 1, (1, 1, 10))
    parts = [Part(np.zeros((1, 1)), effects, 9.0, np.arange(10)) for _ in range(2)]
    apart = [part._replace(places=None) for part in parts]
    shared, independent = (estimate(each, shared_probes=False) for each in (parts, apart))
    assert float(shared.error) == pytest.approx(float(independent.error) * 2**0.5)
    assert float(shared.degrees) == pytest.approx(float(independent.degrees))


def test_degrees_of_freedom_fall_where_few_speakers_have_most_of_the_test_set() -> None:
    assert count_degrees(np.full(10, 0.1)) == pytest.approx(9)
    share = np.array([5, 10, 15, 20, 30, 40, 60, 80]) / 260
    center = np.eye(8) - share  # of the deviations from the weighted mean
    form = center.T @ np.diag(share**2 / (1 - share)) @ center
    assert count_degrees(share) == pytest.approx(np.trace(form) ** 2 / np.trace(form @ form))
    assert count_degrees(share) < 3


def test_what_single_probes_of_single_seeds_add_by_hand() -> None:
    """Two seeds with two probes, whose four values spread by +1 and -1 beside the effects of seeds
    and of probes: one degree of freedom with the square sum 4, and the variance of a mean of 4."""
    seeds, probes = np.array([[10.0], [30.0]]), np.array([[-2.0, 5.0]])
    values = seeds + probes + np.array([[1.0, -1.0], [-1.0, 1.0]])
    part: Any = SimpleNamespace(values=values, effects=np.zeros((2, 2, 7)))
    assert uncertainty._interaction_variance(part) == pytest.approx(4 / 1 / 4)
    # 3 seeds of 2 probes: the square sum 2 x (1 + 1), 2 degrees, a mean of 6
    more = np.array([[1.0, -1.0], [-1.0, 1.0], [0.0, 0.0]])
    part = SimpleNamespace(values=more, effects=np.zeros((3, 2, 7)))
    assert uncertainty._interaction_variance(part) == pytest.approx(4 / 2 / 6)
