"""Linear merging: a weighted sum of task vectors; by default their mean (Speech-FT, arXiv 2502.12672, Eq. 3).

With ``normalize: false`` it is task arithmetic (arXiv 2212.04089), whose scaling coefficient is alpha.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field, model_validator

from speechft_ray.merging.base import METHODS, DonorRange, MergeMethod, MergeParams
from speechft_ray.merging.source import One


class LinearParams(MergeParams):
    """Parameters of the linear merge; the defaults give the paper's mean."""

    weights: Annotated[tuple[float, ...], Field(min_length=1)] | None = None
    """One weight per donor, in the order of the donors; ``None``: 1 each. A negative weight takes a task away."""
    normalize: bool = True
    """Whether the sum is divided by the sum of the weights."""

    @model_validator(mode="after")
    def _sum_divides(self) -> LinearParams:
        if self.normalize and self.weights is not None and math.fsum(self.weights) == 0:
            raise ValueError("`weights` sum to 0, so their sum cannot divide; change them or set `normalize: false`")
        return self


def donors(params: LinearParams) -> DonorRange:
    """As many donors as there are weights; any number without weights."""
    return (1, None) if params.weights is None else (len(params.weights), len(params.weights))


def combine(params: LinearParams, surveyed: None, one: One) -> torch.Tensor:
    """Returns sum(w_i * vector_i), divided by sum(w_i) if ``normalize``.

    The factors w_i / sum(w_i) are formed first, so a lone donor gets exactly 1 and keeps its task vector bit for bit.
    """
    weights = params.weights or (1.0,) * len(one.vectors)
    divisor = math.fsum(weights) if params.normalize else 1.0
    return weighted_sum([weight / divisor for weight in weights], one.vectors)


def weighted_sum(factors: Sequence[float], vectors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Returns sum(factor_i * vector_i), added in the order given."""
    total = vectors[0] * factors[0]
    for factor, vector in zip(factors[1:], vectors[1:], strict=True):
        total.add_(vector, alpha=factor)
    return total


METHODS.register("linear", MergeMethod(params=LinearParams, combine=combine, donors=donors, neutral={}))
