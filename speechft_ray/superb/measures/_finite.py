"""Scores that are not finite, as states that overflow give them, in metrics that sort scores."""

from __future__ import annotations

import numpy as np


def count_as_wrong(scores: np.ndarray, is_target: np.ndarray) -> np.ndarray:
    """Returns the scores with the worst in place of those that are not finite: below all others for
    a target, above them for anything else. Sorted as they are, NaN has an arbitrary place."""
    worst = np.where(is_target, -np.inf, np.inf)
    return np.where(np.isfinite(scores), scores, worst)
