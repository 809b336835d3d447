"""Equal error rate of speaker verification: the threshold at which the miss rate equals the false
acceptance rate, in percent (ASV)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from speechft_ray.core.errors import UserError
from speechft_ray.superb.measures._finite import count_as_wrong


def equal_error_rate(same: Sequence[bool], scores: Sequence[float]) -> float:
    """Returns the equal error rate of trials; a higher score means that the same speaker is more
    likely, and one that is not finite counts as wrong.

    The result is the intersection of the linearly interpolated receiver operating characteristic
    with 1 - x. s3prl (``sv_voxceleb1/utils.py``) finds the same point with a root finder; on a
    polygon it can be computed.

    Raises ``ValueError`` for lists of different length and ``UserError`` unless there are both
    kinds of trial.
    """
    if len(same) != len(scores):
        raise ValueError(f"{len(same)} labels do not belong to {len(scores)} scores")
    targets = np.asarray(same, dtype=bool)
    if targets.all() or not targets.any():
        raise UserError(
            "an equal error rate needs trials of the same speaker and of different ones: check the "
            "list of trials."
        )
    numbers = count_as_wrong(np.asarray(scores, dtype=np.float64), targets)
    accepted, right = _characteristic(targets, numbers)
    above = 1.0 - accepted - right  # falls from 1 to -1
    after = int(np.argmax(above <= 0.0))
    share = above[after - 1] / (above[after - 1] - above[after])
    return 100.0 * float(accepted[after - 1] + share * (accepted[after] - accepted[after - 1]))


def _characteristic(targets: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the shares of impostors and of targets accepted, for each threshold from the highest
    on; both begin at 0."""
    order = np.argsort(-scores, kind="stable")
    # Equal scores are accepted together.
    ordered = scores[order]
    last = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(order) - 1)
    right, accepted = np.cumsum(targets[order])[last], np.cumsum(~targets[order])[last]
    return np.append(0.0, accepted / accepted[-1]), np.append(0.0, right / right[-1])
