"""Selects the exact k-th smallest magnitude of more values than fit into memory.

It is a radix selection on the bit patterns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

_DIGIT_BITS = 16
_DIGITS = 1 << _DIGIT_BITS

_INTEGERS = {torch.float32: (torch.int32, 2), torch.float64: (torch.int64, 4)}
"""Integer dtype of the same size, and its number of 16-bit digits. Magnitudes have no sign bit, so
floats and integers have the same order."""

Words = npt.NDArray[np.uint16]

Passes = Callable[[], Iterable[Sequence[torch.Tensor]]]
"""Starts a pass over the model: yields the tensors of all donors, one parameter or block at a
time."""


Rank = Callable[[int, int], int]
"""Returns the rank to select, from the number of the donor and that of its magnitudes."""


class RankedMagnitude(NamedTuple):
    """A magnitude of a given rank."""

    value: float
    order: int
    """Its rank among the magnitudes equal to it, from 1."""
    equal: int
    """Number of magnitudes equal to it."""


def select_kth_smallest(passes: Passes, donors: int, rank: Rank) -> list[RankedMagnitude]:
    """Returns for each donor the ``rank(donor, total)``-th smallest of its ``total`` magnitudes.

    Ranks begin at 1; the magnitude of rank 0 is 0.0.

    Values are finite, in float32 or float64. There is one pass per 16 bits of the widest dtype. The
    first pass counts magnitudes by their upper 16 bits. Each later pass counts those that share the
    digits selected so far by their next digit. The result is the very value that sorting gives.
    """
    selected = _select_by_digits(passes, donors, rank, torch.float32)
    if selected is None:
        selected = _select_by_digits(passes, donors, rank, torch.float64)
    return selected or []


def _select_by_digits(
    passes: Passes, donors: int, rank: Rank, dtype: torch.dtype
) -> list[RankedMagnitude] | None:
    """Selects digit by digit; ``None`` when a tensor has a wider dtype."""
    integer, digits = _INTEGERS[dtype]
    digits_by_donor: list[list[int]] = [[] for _ in range(donors)]
    remaining, equal = [1] * donors, [0] * donors  # rank among the values that share the digits
    for place in range(digits):
        # Count the next digit of all magnitudes that share the digits selected so far.
        counts = [np.zeros(_DIGITS, dtype=np.int64) for _ in digits_by_donor]
        for tensors in passes():
            if torch.promote_types(tensors[0].dtype, dtype) != dtype:
                return None
            for count, upper, tensor in zip(counts, digits_by_donor, tensors, strict=True):
                count += _count_digits(_split_words(tensor.to(dtype), digits), upper)
        if place == 0:
            remaining = [rank(donor, int(count.sum())) for donor, count in enumerate(counts)]
        # Select the digit at which the cumulative count reaches the rank.
        for donor, count in enumerate(counts):
            below = count.cumsum()
            digit = int(np.searchsorted(below, remaining[donor])) if remaining[donor] else 0
            remaining[donor] -= int(below[digit - 1]) if digit else 0
            digits_by_donor[donor].append(digit)
            equal[donor] = int(count[digit])
    values = (_join_words(words, integer, dtype) for words in digits_by_donor)
    return [RankedMagnitude(*item) for item in zip(values, remaining, equal, strict=True)]


def _split_words(values: torch.Tensor, digits: int) -> Words:
    """Returns the 16-bit words of each value, ``(n, digits)``, the upper word with the sign bit
    first."""
    flat = values.detach().cpu().contiguous().reshape(-1).numpy()
    return (
        flat.astype(flat.dtype.newbyteorder("<"), copy=False)
        .view("<u2")
        .reshape(-1, digits)[:, ::-1]
    )


def _count_digits(words: Words, upper: Sequence[int]) -> npt.NDArray[np.int64]:
    """Returns how often each next digit occurs among the magnitudes whose upper digits are
    ``upper``."""
    if not upper:
        both = np.bincount(words[:, 0], minlength=_DIGITS).reshape(2, -1)  # by sign
        return np.concatenate([both.sum(axis=0), np.zeros(_DIGITS // 2, dtype=np.int64)])
    rows = np.flatnonzero((words[:, 0] & (_DIGITS // 2 - 1)) == upper[0])
    for place, digit in enumerate(upper[1:], start=1):
        rows = rows[words[rows, place] == digit]
    return np.bincount(words[rows, len(upper)], minlength=_DIGITS)


def _join_words(words: Sequence[int], integer: torch.dtype, dtype: torch.dtype) -> float:
    bits = 0
    for word in words:
        bits = bits << _DIGIT_BITS | word
    return float(torch.tensor(bits, dtype=integer).view(dtype))
