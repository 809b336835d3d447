"""SCE: selects positions where donors differ most, calculates a weight per donor and tensor, erases
minority signs (arXiv 2408.07990)."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field

from speechft_ray.merging._consensus import compute_agreeing_mean, elect
from speechft_ray.merging.base import METHODS, MergeMethod, MergeParams
from speechft_ray.merging.param_reader import ParamSlice


class SceParams(MergeParams):
    """Parameters of SCE."""

    density: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of the positions with variance across donors that is selected, the largest variances
    first (the paper's tau, 10 %; mergekit's ``select_topk``, 1). 1 and a lone donor select all."""
    equal_below: Annotated[float, Field(ge=0)] = 0.0
    """Sum of the mean squares below which donors count equally (mergekit: 1e-6, which whole tensors
    stay below after a fine-tuning of small changes)."""


def combine(params: SceParams, precomputed: None, part: ParamSlice) -> torch.Tensor:
    """Returns the mean of the selected values that have the elected sign, weighted by each donor's
    mean square."""
    values = (
        part.vectors
        if len(part.vectors) == 1
        else _select_by_variance(part.vectors, params.density)
    )
    squares = [float(value.double().square().mean()) if value.numel() else 0.0 for value in values]
    total = math.fsum(squares)
    unequal = total > 0.0 and total >= params.equal_below
    weights = [square / total for square in squares] if unequal else [1.0] * len(values)
    return compute_agreeing_mean(
        values, weights, elect(values, "mass"), zero_is_positive=True, divide=True
    )


def _select_by_variance(
    vectors: tuple[torch.Tensor, ...], density: float
) -> tuple[torch.Tensor, ...]:
    """Returns the vectors with 0 where the variance is not among the largest."""
    if density == 1.0 or not vectors[0].numel():
        return vectors
    variance = torch.stack(vectors).var(dim=0, correction=0)
    count = int(int(variance.count_nonzero()) * density)
    mask = torch.zeros(variance.numel(), dtype=torch.bool, device=variance.device)
    mask[variance.flatten().sort(descending=True, stable=True).indices[:count]] = True
    return tuple(vector.where(mask.reshape(variance.shape), 0.0) for vector in vectors)


METHODS.register("sce", MergeMethod(params=SceParams, combine=combine, neutral={}))
