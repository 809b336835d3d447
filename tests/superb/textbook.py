"""The textbook's edit distance, as an independent reference."""

from __future__ import annotations

from collections.abc import Sequence


def textbook_edits(one: Sequence[object], other: Sequence[object]) -> int:
    """Returns the edit distance by the algorithm of Wagner and Fischer."""
    row = list(range(len(other) + 1))
    for i, left in enumerate(one, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(other, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]
