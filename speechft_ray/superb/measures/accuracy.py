"""Accuracy: the share of utterances with the correct label, in percent (KS, SID, ER, IC)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from speechft_ray.core.errors import UserError


def accuracy(predicted: Sequence[Hashable], expected: Sequence[Hashable]) -> float:
    """Returns the percentage of equal pairs.

    A label of several parts is a tuple and is correct when all its parts are (IC: action, object
    and location; s3prl ``fluent_commands/expert.py``).

    Raises ``ValueError`` for lists of different length and ``UserError`` when there is no label.
    """
    if not expected:
        raise UserError(
            "an accuracy needs at least one labelled utterance: check the label column of the test "
            "split."
        )
    return 100.0 * sum(hit for hit, _ in hits(predicted, expected)) / len(expected)


def hits(predicted: Sequence[Hashable], expected: Sequence[Hashable]) -> list[tuple[int, int]]:
    """Returns ``(1 if correct else 0, 1)`` for each utterance."""
    return [(int(one == other), 1) for one, other in zip(predicted, expected, strict=True)]
