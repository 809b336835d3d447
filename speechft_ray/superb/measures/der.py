"""Diarisation error rate: the share of speech given to the wrong speaker, missed or made up, in
percent (SD).

As s3prl scores (dscore at its defaults): no collar, overlapped speech counts, the speakers of a
recording are matched one to one so that they agree for as long as possible, and the times of all
recordings are added up before they are divided.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from speechft_ray.core.errors import UserError


class Turn(NamedTuple):
    """One speaker talking from ``start`` to ``end``, in any unit of time; turns of one speaker may
    overlap."""

    speaker: str
    start: float
    end: float


def diarization_error_rate(
    hypotheses: Sequence[Sequence[Turn]], references: Sequence[Sequence[Turn]]
) -> float:
    """Returns the error rate over parallel recordings; it may exceed 100.

    Raises ``ValueError`` for lists of different length and ``UserError`` when nobody speaks in the
    references.
    """
    found = [errors_and_speech(*pair) for pair in zip(hypotheses, references, strict=True)]
    speech = sum(each[1] for each in found)
    if not speech:
        raise UserError(
            "a diarisation error rate needs references in which somebody speaks: check the segments of test."
        )
    return 100.0 * sum(each[0] for each in found) / speech


def errors_and_speech(hypothesis: Sequence[Turn], reference: Sequence[Turn]) -> tuple[float, float]:
    """Returns the time in error and the time of speech, both summed over speakers, of one
    recording."""
    edges = np.unique(
        [edge for turn in (*hypothesis, *reference) for edge in (turn.start, turn.end)]
    )
    if len(edges) < 2:
        return 0.0, 0.0
    lengths = np.diff(edges)
    spoken, predicted = _active(reference, edges), _active(hypothesis, edges)  # (speakers, pieces)
    agreed = (spoken * lengths) @ predicted.T
    right = agreed[linear_sum_assignment(agreed, maximize=True)].sum() if agreed.size else 0.0
    spoken_count, predicted_count = spoken.sum(axis=0), predicted.sum(axis=0)
    return float((np.maximum(spoken_count, predicted_count) * lengths).sum() - right), float(
        (spoken_count * lengths).sum()
    )


def _active(turns: Sequence[Turn], edges: np.ndarray) -> np.ndarray:
    """Returns who speaks between neighbouring edges: 0 or 1, ``(speakers, pieces)``."""
    speakers = sorted({turn.speaker for turn in turns})
    active = np.zeros((len(speakers), len(edges) - 1))
    for turn in turns:
        first, last = np.searchsorted(edges, (turn.start, turn.end))
        active[speakers.index(turn.speaker), first:last] = 1.0
    return active
