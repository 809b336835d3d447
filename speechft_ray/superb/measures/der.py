"""Diarisation error rate: confused, missed and falsely detected speech, in percent of all speech
(SD).

As in s3prl (dscore at its defaults): no collar, overlapped speech counts, the speakers of a
recording are matched one to one so that their agreement is longest, and the times of all recordings
are added up before they are divided.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

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

    Raises ``ValueError`` for lists of different length and ``UserError`` when the references
    contain no speech.
    """
    times = [errors_and_speech(*pair) for pair in zip(hypotheses, references, strict=True)]
    speech = sum(each[1] for each in times)
    if not speech:
        raise UserError(
            "a diarisation error rate needs references in which somebody speaks: check the "
            "segments of test."
        )
    return 100.0 * sum(each[0] for each in times) / speech


def errors_and_speech(hypothesis: Sequence[Turn], reference: Sequence[Turn]) -> tuple[float, float]:
    """Returns the time in error and the time of speech, both summed over speakers, of one
    recording."""
    edges = np.unique(
        [edge for turn in (*hypothesis, *reference) for edge in (turn.start, turn.end)]
    )
    if len(edges) < 2:
        return 0.0, 0.0
    lengths = np.diff(edges)
    spoken, predicted = (
        _active(reference, edges),
        _active(hypothesis, edges),
    )  # (speakers, intervals)
    agreement = (spoken * lengths) @ predicted.T
    right = 0.0
    if agreement.size:
        from scipy.optimize import linear_sum_assignment  # slow to import, needed for DER alone

        right = agreement[linear_sum_assignment(agreement, maximize=True)].sum()
    spoken_count, predicted_count = spoken.sum(axis=0), predicted.sum(axis=0)
    errors = (np.maximum(spoken_count, predicted_count) * lengths).sum() - right
    return float(errors), float((spoken_count * lengths).sum())


def _active(turns: Sequence[Turn], edges: np.ndarray) -> np.ndarray:
    """Returns who speaks between neighbouring edges: 0 or 1, ``(speakers, intervals)``."""
    speakers = sorted({turn.speaker for turn in turns})
    active = np.zeros((len(speakers), len(edges) - 1))
    for turn in turns:
        first, last = np.searchsorted(edges, (turn.start, turn.end))
        active[speakers.index(turn.speaker), first:last] = 1.0
    return active
