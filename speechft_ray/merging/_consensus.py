"""One sign per position, and the mean of what agrees with it (TIES, arXiv 2306.01708); shared by
all methods that elect."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch

Elect = Literal["mass", "count"]


def require_votes(weights: Sequence[float] | None) -> None:
    """Raises ``ValueError`` for a negative weight, since a vote cannot be taken back, and when all
    are 0."""
    if weights is not None and (min(weights) < 0 or max(weights) == 0):
        raise ValueError(
            f"`weights` must not be negative with these parameters, and not all 0, but are {list(weights)}"
        )


def elect(
    values: Sequence[torch.Tensor], how: Elect, weights: Sequence[float] | None = None
) -> torch.Tensor:
    """Returns the elected signs -1, 0, 1: of the summed values (``mass``) or of the summed signs
    (``count``).

    ``weights`` multiply the values first. Sums run in donor order, as a stack of the donors would
    be summed. Signs stay in the values' number type: comparisons and masks of bytes take torch on a
    CPU ten times as long as arithmetic.
    """
    total = torch.zeros_like(values[0])
    for index, value in enumerate(values):
        weighed = value if weights is None else value * weights[index]
        total.add_(weighed.sign() if how == "count" else weighed)
    return total.sign_()


def majority_is_positive(signs: Iterable[torch.Tensor]) -> bool:
    """Whether the elected signs of the whole model sum to more than 0.

    Positions whose sum is 0 take the sign of this sum, and - when that is 0 as well (the TIES
    authors' code; mergekit elects +).
    """
    return sum(int(sign.sum(dtype=torch.float64)) for sign in signs) > 0


def agreeing_mean(
    values: Sequence[torch.Tensor],
    weights: Sequence[float],
    signs: torch.Tensor,
    *,
    zero_is_positive: bool,
    divide: bool,
) -> torch.Tensor:
    """Returns the weighted mean over the donors that are not 0 and have the elected sign; 0 where
    none has it.

    With ``divide`` false it is the weighted sum. No weight is negative.
    """
    decided = signs.add(0.5 if zero_is_positive else -0.5).sign_()
    total, count = torch.zeros_like(values[0]), torch.zeros_like(values[0])
    for value, weight in zip(values, weights, strict=True):
        agreeing = (value * decided).clamp_min_(0)
        total.add_(agreeing, alpha=weight)
        if divide:
            count.add_(agreeing.sign_(), alpha=weight)
    if divide:
        total.div_(count.clamp_min_(torch.finfo(count.dtype).tiny))
    return total.mul_(decided)
