"""Maximum term-weighted value of spoken term detection: the value of the detections at the best
threshold (QbE); 1 is perfect.

TWV(threshold) = 1 - mean over queries of (P_miss + beta * P_fa), where P_miss is the share of the
documents with the query that score below the threshold, P_fa the share of the others that do not.
The data set's own scorer is a Java program; the weights are those quoted for QUESST 2014 and could
not be checked against it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from speechft_ray.core.errors import UserError
from speechft_ray.superb.measures._finite import count_as_wrong

TARGET_PRIOR, FALSE_ALARM_COST, MISS_COST = 0.0008, 1.0, 100.0
BETA = FALSE_ALARM_COST / MISS_COST * (1 / TARGET_PRIOR - 1)
"""12.49: the cost of a false alarm, in misses."""


def maximum_term_weighted_value(
    scores: Sequence[np.ndarray], matches: Sequence[np.ndarray]
) -> float:
    """Returns the highest term-weighted value over all thresholds; never below 0, the value of
    detecting nothing.

    ``scores`` and ``matches`` have one array ``(documents,)`` per query: a score that is higher for
    more certain detections, and whether the document contains the query. Queries that no document
    contains, or every document, are left out. A score that is not finite counts as wrong.

    Raises ``ValueError`` for lists of different length and ``UserError`` when no query is left.
    """
    pairs = [(score, match.astype(bool)) for score, match in zip(scores, matches, strict=True)]
    pairs = [(score, match) for score, match in pairs if 0 < match.sum() < len(match)]
    if not pairs:
        raise UserError(
            "a term-weighted value needs queries that some documents match: check the column "
            "`matches`."
        )
    gains = [np.where(match, 1.0 / match.sum(), -BETA / (~match).sum()) for _, match in pairs]
    gain = np.concatenate(gains)
    flat = np.concatenate([count_as_wrong(score, match) for score, match in pairs])
    order = np.argsort(-flat, kind="stable")
    # Equal scores pass a threshold together.
    ordered = flat[order]
    last = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(order) - 1)
    return float(max(0.0, (np.cumsum(gain[order])[last] / len(pairs)).max()))
