"""The exact k-th smallest magnitude of more numbers than fit into memory, by their bit patterns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

_DIGIT_BITS = 16
_DIGITS = 1 << _DIGIT_BITS

_INTEGERS = {torch.float32: (torch.int32, 2), torch.float64: (torch.int64, 4)}
"""Integer type of the same size, and how many digits it has. Magnitudes have no sign bit, so both order alike."""


def kth_smallest(passes: Callable[[], Iterable[Sequence[torch.Tensor]]], ranks: Sequence[int]) -> list[float]:
    """Returns for each donor the magnitude of rank ``ranks[donor]`` (from 1; 0 gives 0.0) among all its values.

    ``passes()`` starts to read again from the beginning and yields the tensors of all donors, one parameter at a time, float32
    or float64, finite. It is called once per 16 bits of the widest number type: the first time the magnitudes are counted by
    their upper 16 bits, then those that share the upper bits of the answer by the next ones. The result is the very number
    that sorting would find.
    """
    found = _narrowed(passes, ranks, torch.float32)
    return found if found is not None else _narrowed(passes, ranks, torch.float64) or []


def _narrowed(
    passes: Callable[[], Iterable[Sequence[torch.Tensor]]], ranks: Sequence[int], number_type: torch.dtype
) -> list[float] | None:
    """Narrows each donor's answer digit by digit; ``None`` when a tensor is of a wider type."""
    integer, digits = _INTEGERS[number_type]
    prefixes, left = [0] * len(ranks), list(ranks)
    for shift in range(_DIGIT_BITS * (digits - 1), -1, -_DIGIT_BITS):
        counts = [torch.zeros(_DIGITS, dtype=torch.int64) for _ in ranks]
        for tensors in passes():
            if torch.promote_types(tensors[0].dtype, number_type) != number_type:
                return None
            for donor, tensor in enumerate(tensors):
                if left[donor]:
                    bits = tensor.to(number_type).abs().flatten().view(integer)
                    counts[donor] += _digit_counts(bits, shift, prefixes[donor], shift == _DIGIT_BITS * (digits - 1))
        for donor, count in enumerate(counts):
            if left[donor]:
                below = count.cumsum(0)
                digit = int(torch.searchsorted(below, left[donor]))
                left[donor] -= int(below[digit - 1]) if digit else 0
                prefixes[donor] = prefixes[donor] << _DIGIT_BITS | digit
    return [float(torch.tensor(prefix, dtype=integer).view(number_type)) for prefix in prefixes]


def _digit_counts(bits: torch.Tensor, shift: int, prefix: int, first: bool) -> torch.Tensor:
    """Returns how often each digit occurs among the numbers whose upper bits are ``prefix``."""
    upper = bits >> shift
    chosen = upper if first else upper[upper >> _DIGIT_BITS == prefix] & (_DIGITS - 1)
    return torch.bincount(chosen, minlength=_DIGITS).cpu()
