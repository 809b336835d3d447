"""Predicts how many fine-tuning seeds tell a difference of a given size from none.

The components of variance of a difference (``report.uncertainty.Components``) are measured on what
is complete. With n seeds and a test set of k times as many speakers, the variance is ``speakers / k
+ seed / n + probes``. A sweep estimates each component by a sum of squares, and
``report.uncertainty.estimate`` derives an interval from them; the power is the mean over these
estimates of the probability that the interval excludes 0. With one probe seed the prediction is
about that probe, as the interval is.
``tests/report/test_power.py`` compares the prediction with simulated sweeps.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import chdtri, ndtr, stdtrit

from speechft_ray.report.comparison import estimate_lines
from speechft_ray.report.lines import Role, TableLine
from speechft_ray.report.uncertainty import CAUTION, Components

DIFFERENCES = (5.0, 10.0, 20.0)
"""Points of the score that a plan is asked for."""
SIZES = (1.0, 2.0, 4.0)
"""Sizes of the test sets, as multiples of what they are."""
POWER = 0.8
"""Share of the sweeps in which a true difference is to be seen; the usual convention
(Cohen, Statistical Power Analysis for the Behavioral Sciences, 1988)."""
MOST_SEEDS = 50
ENDLESS = 1e9
"""Degrees of freedom where nothing varies."""


class Spread(NamedTuple):
    """How a difference of two encoders varies, in points squared."""

    speakers: float
    """Over test speakers, for test sets of today's size."""
    speaker_degrees: float
    seed: float
    """What one fine-tuning seed adds, the noise of its probes included."""
    probes: float
    """Of the probes of the pre-trained encoder, which all fine-tuning seeds are compared with."""
    probe_degrees: float


def measure_spread(lines: Sequence[TableLine], role: Role) -> Spread | None:
    """Returns the mean spread of the differences between merges and the first control of ``role``;
    ``None`` where no merge has two fine-tuning seeds and counts of every metric."""
    control = next((line for line in lines if line.role == role and line.score is not None), None)
    if control is None:
        return None
    merges = [line for line in lines if line.role == "merge" and line.score is not None]
    results = [
        (seeds, result.components)
        for seeds, result in (estimate_lines(line, control) for line in merges)
        if result is not None and seeds > 1
    ]
    if not results:
        return None
    components = Components(*map(np.asarray, zip(*(each for _, each in results), strict=True)))
    seeds = np.asarray([count for count, _ in results])
    return make_spread(components._replace(tunings=components.tunings * seeds), 1)


def make_spread(components: Components, seeds: int) -> Spread:
    """Returns the spread behind estimates from so many fine-tuning seeds: the mean over the leading
    axes, since single estimates are rough where seeds are few."""
    parts = components
    return Spread(
        float(np.mean(parts.speakers)),
        _average_degrees(parts.speakers, parts.speaker_degrees),
        seeds * float(np.mean(parts.tunings)),
        float(np.mean(parts.probes)),
        _average_degrees(parts.probes, parts.probe_degrees),
    )


def _average_degrees(variances: np.ndarray, degrees: np.ndarray) -> float:
    """Returns degrees of freedom of a mean variance, whose estimates are sums of squares with
    these."""
    shares = np.divide(variances**2, degrees, out=np.zeros_like(variances), where=degrees > 0)
    squares = float(np.mean(shares))
    return float(np.mean(variances**2)) / squares if squares else ENDLESS


def compute_power(difference: float, spread: Spread, seeds: int, size: float = 1.0) -> float:
    """Returns the probability that a 95 % interval of a true difference is above 0.

    ``difference`` is in points and positive, ``seeds`` at least 2, ``size`` the size of the test
    sets as a multiple of today's, with new speakers.
    """
    speakers, tunings = spread.speakers / size, spread.seed / seeds
    true_error = (speakers + tunings + spread.probes) ** 0.5
    if not true_error:
        return 1.0
    # What a sweep would estimate of each component, at evenly spaced probabilities.
    speaker_degrees = spread.speaker_degrees * size
    by_speaker = speakers * _list_quantiles(speaker_degrees, 16)[:, None, None]
    by_seed = tunings * _list_quantiles(seeds - 1, 64)[:, None]
    by_probe = spread.probes * _list_quantiles(spread.probe_degrees, 8)
    # The interval that follows from them, as report.uncertainty.estimate computes it.
    weighted = by_speaker + CAUTION * by_seed + by_probe
    squares = by_speaker**2 / speaker_degrees + (CAUTION * by_seed) ** 2 / (seeds - 1)
    squares = squares + by_probe**2 / spread.probe_degrees
    degrees = np.maximum(weighted**2 / np.maximum(squares, 1e-300), 1.0)
    limits = -stdtrit(degrees, 0.025) * np.sqrt(by_speaker + by_seed + by_probe)
    return float(ndtr((difference - limits) / true_error).mean())


def _list_quantiles(degrees: float, count: int) -> np.ndarray:
    """Returns quantiles of an estimated variance whose true value is 1."""
    if degrees >= ENDLESS:
        return np.ones(1)
    probabilities = (np.arange(count) + 0.5) / count
    return np.asarray(chdtri(degrees, 1 - probabilities) / degrees)


def find_seeds(difference: float, spread: Spread, size: float = 1.0) -> int | None:
    """Returns the lowest number of fine-tuning seeds with at least ``POWER``; ``None`` where
    ``MOST_SEEDS`` do not suffice."""
    counts = range(2, MOST_SEEDS + 1)
    place = bisect_left(
        counts, True, key=lambda seeds: compute_power(difference, spread, seeds, size) >= POWER
    )
    return counts[place] if place < len(counts) else None
