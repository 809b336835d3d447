"""One sign per position, and the mean of what agrees with it (TIES, arXiv 2306.01708); shared by all methods that elect."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch

Elect = Literal["mass", "count"]


def elect(values: Sequence[torch.Tensor], how: Elect) -> torch.Tensor:
    """Returns the elected signs -1, 0, 1 as int8: of the summed values (``mass``) or of the summed signs (``count``).

    Sums run in donor order, as a stack of the donors would be summed.
    """
    total = torch.zeros_like(values[0])
    for value in values:
        total.add_(value.sign() if how == "count" else value)
    return total.sign_().to(torch.int8)


def majority_is_positive(signs: Iterable[torch.Tensor]) -> bool:
    """Whether the elected signs of the whole model sum to more than 0.

    Positions whose sum is 0 take the sign of this sum, and - when that is 0 as well (the TIES authors' code; mergekit
    elects +).
    """
    return sum(int(sign.sum(dtype=torch.int64)) for sign in signs) > 0


def agreeing_mean(
    values: Sequence[torch.Tensor], weights: Sequence[float], signs: torch.Tensor, zero_is_positive: bool, divide: bool
) -> torch.Tensor:
    """Returns the weighted mean over the donors that are not 0 and have the elected sign; 0 where none has it.

    With ``divide`` false it is the weighted sum. ``weights`` count by their amount: a negative one turns its donor around, and
    then ``signs`` must have been elected from values turned around as well.
    """
    positive = signs >= 0 if zero_is_positive else signs > 0
    total, count = torch.zeros_like(values[0]), torch.zeros_like(values[0])
    for value, weight in zip(values, weights, strict=True):
        agrees = torch.where(positive, value > 0, value < 0)
        total.add_(value.where(agrees, 0.0), alpha=weight)
        count.add_(agrees, alpha=weight)
    return total.div_(count.masked_fill_(count == 0, 1.0)) if divide else total
