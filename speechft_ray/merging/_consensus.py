"""Elects one sign per position and averages the values that have it (TIES, arXiv 2306.01708).

Shared by all methods that elect signs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from pydantic import model_validator

from speechft_ray.merging.base import AveragedParams
from speechft_ray.merging.linear import compute_weighted_sum

Elect = Literal["mass", "count"]
NormElect = Literal["normfrac", "normmass"]


def require_votes(weights: Sequence[float] | None) -> None:
    """Raises ``ValueError`` for weights that cannot count votes: a negative one, or all 0."""
    if weights is not None and (min(weights) < 0 or max(weights) == 0):
        raise ValueError(
            "`weights` must not be negative with these parameters, and not all 0, "
            f"but are {list(weights)}"
        )


class ConsensusParams(AveragedParams):
    """Parameters of a method that may elect signs before it averages."""

    consensus: bool = False
    """Whether signs are elected, from the weighted values, and only values that agree are added."""

    @model_validator(mode="after")
    def _can_vote(self) -> ConsensusParams:
        if self.consensus:
            require_votes(self.weights)
        return self


def combine_values(params: ConsensusParams, values: Sequence[torch.Tensor]) -> torch.Tensor:
    """Returns the weighted mean or sum of the donors' values; with ``consensus``, of those that
    have the elected sign."""
    weights = params.weights_of(len(values))
    if not params.consensus:
        return compute_weighted_sum(weights, values, params.normalize)
    signs = elect(values, "mass", weights)
    return compute_agreeing_mean(
        values, weights, signs, zero_is_positive=True, divide=params.normalize
    )


def elect(
    values: Sequence[torch.Tensor], how: Elect, weights: Sequence[float] | None = None
) -> torch.Tensor:
    """Returns the elected signs -1, 0, 1: of the summed values (``mass``) or of the summed signs
    (``count``).

    ``weights`` multiply the values first. Values are added in donor order. Signs stay in the
    values' dtype: on a CPU, torch takes ten times as long for comparisons and byte masks as for
    arithmetic.
    """
    if weights is not None:
        values = [value * weight for value, weight in zip(values, weights, strict=True)]
    if how == "count":
        values = [value.sign() for value in values]
    if len(values) == 1:
        return values[0].sign()
    total = values[0] + values[1]
    for value in values[2:]:
        total.add_(value)
    return total.sign_()


def elect_by_norm(
    values: Sequence[torch.Tensor], how: NormElect, squares: Sequence[float]
) -> torch.Tensor:
    """Returns the signs -1, 0, 1 that shares of the donors' squared norms elect (TIES authors'
    code).

    The share of a value is its square over ``squares``, the squared norm of its donor. ``normfrac``
    takes the sign of the value with the largest share, ``normmass`` that of the sum of the shares
    with their values' signs.
    """
    shares = [
        value.square() / (square or 1.0) for value, square in zip(values, squares, strict=True)
    ]
    if how == "normmass":
        return elect(
            [share * value.sign() for share, value in zip(shares, values, strict=True)], "mass"
        )
    largest, signs = shares[0], values[0].sign()
    for share, value in zip(shares[1:], values[1:], strict=True):
        signs = torch.where(share > largest, value.sign(), signs)
        largest = torch.maximum(share, largest)
    return signs


def is_majority_positive(signs: Iterable[torch.Tensor]) -> bool:
    """Whether the elected signs of the whole model, in blocks, sum to more than 0.

    Positions whose own sum is 0 take the sign of this sum, and - when that is 0 as well (the TIES
    authors' code; mergekit elects +).
    """
    # Sums of so few whole numbers are exact in float32, in any order.
    return sum(int(sign.sum()) for sign in signs) > 0


def compute_agreeing_mean(
    values: Sequence[torch.Tensor],
    weights: Sequence[float],
    signs: torch.Tensor,
    *,
    zero_is_positive: bool,
    divide: bool,
) -> torch.Tensor:
    """Returns the weighted mean of the values that have the elected sign; 0 where there is none.

    With ``divide`` false it is the weighted sum. No weight may be negative.
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


def compute_agreeing_max(
    values: Sequence[torch.Tensor],
    weights: Sequence[float],
    signs: torch.Tensor,
    *,
    zero_is_positive: bool,
) -> torch.Tensor:
    """Returns the weighted value of largest magnitude among those that have the elected sign; 0
    where there is none."""
    decided = signs.add(0.5 if zero_is_positive else -0.5).sign_()
    largest = torch.zeros_like(values[0])
    for value, weight in zip(values, weights, strict=True):
        torch.maximum(largest, value * decided * weight, out=largest)
    return largest.mul_(decided)


def compute_present_mean(
    values: Sequence[torch.Tensor], weights: Sequence[float], *, divide: bool
) -> torch.Tensor:
    """Returns the weighted mean of the values that are not 0, whatever their sign; the weighted sum
    with ``divide`` false."""
    total, count = torch.zeros_like(values[0]), torch.zeros_like(values[0])
    for value, weight in zip(values, weights, strict=True):
        total.add_(value, alpha=weight)
        if divide:
            count.add_(value.sign().abs_(), alpha=weight)
    return total.div_(count.clamp_min_(torch.finfo(count.dtype).tiny)) if divide else total
