"""Spearman's rank correlation with an interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

FEWEST_PAIRS = 5
"""Pairs below which an interval would say nothing."""


class RankCorrelation(NamedTuple):
    """A rank correlation of so many pairs, with the ends of its 95 % interval."""

    value: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f}, {self.pairs} pairs)"


def correlate_ranks(one: Sequence[float], other: Sequence[float]) -> RankCorrelation | None:
    """Returns Spearman's correlation of pairs; equals share their mean rank.

    The interval is that of Fisher's z with the standard error ``sqrt((1 + r^2 / 2) / (n - 3))``
    (Bonett and Wright, Psychometrika 65, 2000). ``None`` for fewer than ``FEWEST_PAIRS`` pairs, and
    where one side has a single value.
    """
    pairs = len(one)
    if pairs < FEWEST_PAIRS or len(set(one)) < 2 or len(set(other)) < 2:
        return None
    from scipy.stats import norm, rankdata  # slow to import

    value = float(np.corrcoef(rankdata(one), rankdata(other))[0, 1])
    value = min(1.0, max(-1.0, value))
    if abs(value) == 1.0:
        return RankCorrelation(value, value, value, pairs)
    half = float(norm.ppf(0.975)) * math.sqrt((1 + value**2 / 2) / (pairs - 3))
    z = math.atanh(value)
    return RankCorrelation(value, math.tanh(z - half), math.tanh(z + half), pairs)
