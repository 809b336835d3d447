"""Where the score across alpha peaks, with an interval over fine-tuning seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from speechft_ray.report.lines import TableLine
from speechft_ray.report.series import make_series

DRAWS = 10_000
MIN_SEEDS = 3
"""With two seeds a bootstrap has three different samples, which make no interval."""


class Peak(NamedTuple):
    """The alpha with the best mean score, and the 95 % interval of it over fine-tuning seeds."""

    title: str
    alphas: tuple[float, ...]
    """Those that were tried: between them the score may be higher, so a peak is one of these."""
    alpha: float
    interval: tuple[float, float] | None
    """``None`` with fewer than ``MIN_SEEDS`` seeds that have every alpha."""
    seeds: int

    @property
    def is_inside(self) -> bool | None:
        """Whether the best of the alphas that were tried lies inside (0, 1): ``None`` where the
        interval has one of both kinds."""
        if self.interval is None:
            return None
        low, high = self.interval
        if low > 0 and high < 1:
            return True
        return False if low == high and low in (0, 1) else None


def find_peaks(lines: Sequence[TableLine]) -> list[Peak]:
    """Returns the peak of every series over alpha of the test score, from seeds that have all of
    its points."""
    peaks = []
    for series in make_series(lines, "score"):
        alphas = [alpha for alpha, _ in series.points]
        if len(alphas) < 3:
            continue
        by_seed = [_read_scores(line) for _, line in series.points if line.role != "pre-trained"]
        seeds = sorted(set.intersection(*(set(scores) for scores in by_seed)))
        if not seeds:
            continue
        curves = [
            [
                float(line.score or 0.0) if line.role == "pre-trained" else _read_scores(line)[seed]
                for _, line in series.points
            ]
            for seed in seeds
        ]
        peaks.append(estimate_peak(series.title, alphas, np.asarray(curves)))
    return peaks


def estimate_peak(title: str, alphas: Sequence[float], curves: np.ndarray) -> Peak:
    """Returns the peak of the mean of ``curves``, shape ``(seeds, alphas)``, with a percentile
    bootstrap over seeds. On ties the smallest alpha counts."""
    rng = np.random.default_rng(0)
    best = float(alphas[int(curves.mean(0).argmax())])
    if len(curves) < MIN_SEEDS:
        return Peak(title, tuple(alphas), best, None, len(curves))
    drawn = curves[rng.integers(0, len(curves), size=(DRAWS, len(curves)))].mean(1).argmax(-1)
    low, high = np.quantile(np.asarray(alphas)[drawn], [0.025, 0.975], method="nearest")
    return Peak(title, tuple(alphas), best, (float(low), float(high)), len(curves))


def _read_scores(line: TableLine) -> dict[str, float]:
    """Returns the score by fine-tuning seed."""
    return {
        str(row.params.get("seed")): row.test["score"]
        for row in line.rows
        if row.complete and "score" in row.test
    }
