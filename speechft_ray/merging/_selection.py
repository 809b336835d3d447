"""The exact k-th smallest magnitude of more numbers than fit into memory, by their bit patterns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

_DIGIT_BITS = 16
_DIGITS = 1 << _DIGIT_BITS

_INTEGERS = {torch.float32: (torch.int32, 2), torch.float64: (torch.int64, 4)}
"""Integer type of the same size, and how many digits it has. Magnitudes have no sign bit, so both
order alike."""

Words = npt.NDArray[np.uint16]

Passes = Callable[[], Iterable[Sequence[torch.Tensor]]]
"""Starts to read again from the beginning: the tensors of all donors, one parameter at a time."""


class RankedMagnitude(NamedTuple):
    """A magnitude of a given rank."""

    value: float
    place: int
    """Which of the magnitudes equal to it is meant, from 1."""
    equal: int
    """How many are equal to it."""


def select_kth_smallest(
    passes: Passes, donors: int, rank: Callable[[int], int]
) -> list[RankedMagnitude]:
    """Returns for each donor the magnitude that is ``rank(total)``-th among all its ``total``
    values, from 1; 0.0 for rank 0.

    Values are float32 or float64 and finite. They are read once per 16 bits of the widest type: the
    first time the magnitudes are counted by their upper 16 bits, then those that share the upper
    bits of the answer by the next ones. The result is the very number that sorting would find.
    """
    digits_by_donor = _select_by_digits(passes, donors, rank, torch.float32)
    return (
        digits_by_donor
        if digits_by_donor is not None
        else _select_by_digits(passes, donors, rank, torch.float64) or []
    )


def _select_by_digits(
    passes: Passes, donors: int, rank: Callable[[int], int], dtype: torch.dtype
) -> list[RankedMagnitude] | None:
    """Narrows each donor's answer digit by digit; ``None`` when a tensor is of a wider type."""
    integer, digits = _INTEGERS[dtype]
    digits_by_donor: list[list[int]] = [[] for _ in range(donors)]
    left, equal = [1] * donors, [0] * donors
    for place in range(digits):
        counts = [np.zeros(_DIGITS, dtype=np.int64) for _ in digits_by_donor]
        for tensors in passes():
            if torch.promote_types(tensors[0].dtype, dtype) != dtype:
                return None
            for count, upper, tensor in zip(counts, digits_by_donor, tensors, strict=True):
                count += _digit_counts(_words(tensor.to(dtype), digits), upper)
        if place == 0:
            left = [rank(int(count.sum())) for count in counts]
        for donor, count in enumerate(counts):
            below = count.cumsum()
            digit = int(np.searchsorted(below, left[donor])) if left[donor] else 0
            left[donor] -= int(below[digit - 1]) if digit else 0
            digits_by_donor[donor].append(digit)
            equal[donor] = int(count[digit])
    values = (_number(words, integer, dtype) for words in digits_by_donor)
    return [RankedMagnitude(*item) for item in zip(values, left, equal, strict=True)]


def _words(values: torch.Tensor, digits: int) -> Words:
    """Returns the 16-bit words of each value, ``(n, digits)``, the upper first, with the sign
    bit."""
    flat = values.detach().cpu().contiguous().reshape(-1).numpy()
    return (
        flat.astype(flat.dtype.newbyteorder("<"), copy=False)
        .view("<u2")
        .reshape(-1, digits)[:, ::-1]
    )


def _digit_counts(words: Words, upper: Sequence[int]) -> npt.NDArray[np.int64]:
    """Returns how often each next digit occurs among the magnitudes whose upper digits are
    ``upper``."""
    if not upper:
        both = np.bincount(words[:, 0], minlength=_DIGITS).reshape(2, -1)  # by sign
        return np.concatenate([both.sum(axis=0), np.zeros(_DIGITS // 2, dtype=np.int64)])
    chosen = np.flatnonzero((words[:, 0] & (_DIGITS // 2 - 1)) == upper[0])
    for place, digit in enumerate(upper[1:], start=1):
        chosen = chosen[words[chosen, place] == digit]
    return np.bincount(words[chosen, len(upper)], minlength=_DIGITS)


def _number(words: Sequence[int], integer: torch.dtype, dtype: torch.dtype) -> float:
    bits = 0
    for word in words:
        bits = bits << _DIGIT_BITS | word
    return float(torch.tensor(bits, dtype=integer).view(dtype))
