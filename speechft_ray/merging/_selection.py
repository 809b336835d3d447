"""Selects the exact k-th smallest magnitude of more values than fit into memory.

A sample of the positions narrows the search to a range of bit patterns, and one pass counts what is
below the range and what is in it. Without a sample, or where the rank lies outside of the range, it
is a radix selection on the bit patterns. Either gives the very value that sorting gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

_DIGIT_BITS = 16
_DIGITS = 1 << _DIGIT_BITS

_INTEGERS = {torch.float32: (torch.int32, 2), torch.float64: (torch.int64, 4)}
"""Integer dtype of the same size, and its number of 16-bit digits. Magnitudes have no sign bit, so
floats and integers have the same order."""

Words = npt.NDArray[np.uint16]

Keys = npt.NDArray[np.unsignedinteger[Any]]
"""Bit patterns of magnitudes."""

Passes = Callable[[], Iterable[Sequence[torch.Tensor]]]
"""Starts a pass over the model: yields the tensors of all donors, one parameter or block at a
time."""


Rank = Callable[[int, int], int]
"""Returns the rank to select, from the number of the donor and that of its magnitudes."""

_UNSIGNED: Mapping[torch.dtype, type[np.unsignedinteger[Any]]] = {
    torch.float32: np.uint32,
    torch.float64: np.uint64,
}

_DEVIATIONS = 5
"""Half the width of the range around the rank that a sample gives, in standard deviations of that
rank in a random sample."""

_FLUSH = 1 << 17
"""Number of values in the range from which on they are tallied before others are read."""


class Sample(NamedTuple):
    """Some of the positions of a model."""

    values: list[list[torch.Tensor]]
    """By donor, then by parameter."""
    total: int
    """Number of all positions."""


class RankedMagnitude(NamedTuple):
    """A magnitude of a given rank."""

    value: float
    order: int
    """Its rank among the magnitudes equal to it, from 1."""
    equal: int
    """Number of magnitudes equal to it."""


def select_kth_smallest(
    passes: Passes, donors: int, rank: Rank, sample: Sample | None = None
) -> list[RankedMagnitude]:
    """Returns for each donor the ``rank(donor, total)``-th smallest of its ``total`` magnitudes.

    Ranks begin at 1; the magnitude of rank 0 is 0.0.

    Values are finite, in float32 or float64. With a sample there is one pass. Without, or where the
    sample misleads, there is one per 16 bits of the widest dtype: the first counts magnitudes by
    their upper 16 bits, each later one counts those that share the digits selected so far by their
    next digit.
    """
    if sample is not None and sample.total:
        selected = _select_in_ranges(passes, donors, rank, sample)
        if selected is not None:
            return selected
    selected = _select_by_digits(passes, donors, rank, torch.float32)
    if selected is None:
        selected = _select_by_digits(passes, donors, rank, torch.float64)
    return selected or []


def _select_in_ranges(
    passes: Passes, donors: int, rank: Rank, sample: Sample
) -> list[RankedMagnitude] | None:
    """Selects among the values near those of the same rank in the sample; ``None`` when a rank lies
    elsewhere."""
    wide = any(tensor.dtype == torch.float64 for tensor in sample.values[0])
    dtype = torch.float64 if wide else torch.float32
    ranks = [rank(donor, sample.total) for donor in range(donors)]
    tallies = [
        _Tally(*_find_range([_to_keys(tensor, dtype) for tensor in values], each / sample.total))
        for values, each in zip(sample.values, ranks, strict=True)
    ]
    for tensors in passes():
        for tally, tensor in zip(tallies, tensors, strict=True):
            tally.add(_to_keys(tensor, dtype))
    selected = [tally.select(each) for tally, each in zip(tallies, ranks, strict=True)]
    return None if None in selected else [each for each in selected if each is not None]


def _to_keys(values: torch.Tensor, dtype: torch.dtype) -> Keys:
    """Returns the bit patterns of the magnitudes, whose order is that of the magnitudes."""
    flat = values.detach().to(dtype).cpu().contiguous().reshape(-1).numpy()
    bits: Keys = flat.view(_UNSIGNED[dtype])
    keys: Keys = np.bitwise_and(bits, bits.dtype.type(_largest(bits)))
    return keys


def _largest(keys: Keys) -> int:
    """The highest key there is: all bits but the sign's."""
    return (1 << (8 * keys.itemsize - 1)) - 1


def _find_range(keys: Sequence[Keys], share: float) -> tuple[int, int]:
    """Returns the lowest and the highest key around the value that this share of a sample is below
    or equal to."""
    merged = np.concatenate(keys)
    size = len(merged)
    slack = _DEVIATIONS * math.sqrt(size * share * (1 - share)) + 2
    low, high = int(share * size - slack) - 1, int(share * size + slack) + 1
    inside = [place for place in (low, high) if 0 <= place < size]
    merged.partition(inside or [0])
    return (
        int(merged[low]) if low >= 0 else 0,
        int(merged[high]) if high < size else _largest(merged),
    )


class _Tally:
    """Counts the keys below a range, and each key in it."""

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high
        self.below = 0
        self._pending: list[Keys] = []
        self._count = 0
        self._keys: Keys = np.zeros(0, dtype=np.uint64)
        self._counts: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)

    def add(self, keys: Keys) -> None:
        """Counts more keys. Overwrites them."""
        # Keys below the range are negative then, which is one comparison for both ends.
        signed = np.subtract(keys, keys.dtype.type(self.low), out=keys).view(
            np.dtype(f"i{keys.itemsize}")
        )
        self.below += int(np.count_nonzero(signed < 0))
        inside = keys[keys <= keys.dtype.type(self.high - self.low)]
        self._pending.append(inside)
        self._count += len(inside)
        if self._count > _FLUSH:
            self._flush()

    def select(self, rank: int) -> RankedMagnitude | None:
        """Returns the magnitude of that rank; ``None`` when it lies outside of the range."""
        if rank == 0:
            return RankedMagnitude(0.0, 0, 0)
        dtype = self._pending[0].dtype if self._pending else self._keys.dtype
        self._flush()
        ends = self._counts.cumsum()
        order = rank - self.below
        if order < 1 or not len(ends) or order > ends[-1]:
            return None
        place = int(np.searchsorted(ends, order))
        key = dtype.type(int(self._keys[place]) + self.low)
        equal = int(self._counts[place])
        return RankedMagnitude(
            value=float(key.view(np.dtype(f"f{dtype.itemsize}"))),
            order=order - int(ends[place]) + equal,
            equal=equal,
        )

    def _flush(self) -> None:
        """Tallies what was added since the last time."""
        keys, counts = np.unique(np.concatenate(self._pending), return_counts=True)
        if len(self._keys):
            together = np.concatenate([self._keys, keys])
            weights = np.concatenate([self._counts, counts])
            keys, places = np.unique(together, return_inverse=True)
            counts = np.zeros(len(keys), dtype=np.int64)
            np.add.at(counts, places, weights)
        self._keys, self._counts = keys, counts
        self._pending, self._count = [keys[:0]], 0


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
