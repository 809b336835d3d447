"""Model breadcrumbs: leave out the largest and the smallest changes of each tensor, add up the rest
(arXiv 2312.06795).

``consensus`` is mergekit's ``breadcrumbs_ties``: signs are elected before the sum. The paper
searches the shares that it masks; the defaults are the starting point that mergekit's documentation
names.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, model_validator

from speechft_ray.merging._consensus import agreeing_mean, elect, require_votes
from speechft_ray.merging.base import METHODS, AveragedParams, MergeMethod, one_per_weight
from speechft_ray.merging.linear import compute_weighted_sum
from speechft_ray.merging.param_reader import ParamSlice


class BreadcrumbsParams(AveragedParams):
    """Parameters of breadcrumbs."""

    density: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of each tensor's positions that is kept, int(n * density) of n; 1 keeps all."""
    gamma: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Share of the largest magnitudes that is left out first, int(n * gamma) of n: the paper's 1 -
    gamma. Less where fewer than that are to be left out."""
    normalize: bool = False
    """Whether the weighted sum is divided by the sum of the weights in it."""
    consensus: bool = False
    """Whether signs are elected, from the weighted values, and only what agrees is added."""

    @model_validator(mode="after")
    def _fits(self) -> BreadcrumbsParams:
        if self.consensus:
            require_votes(self.weights)
        return self


def combine(params: BreadcrumbsParams, precomputed: None, part: ParamSlice) -> torch.Tensor:
    """Returns the sum or mean of the masked task vectors, of those that have the elected sign with
    ``consensus``."""
    values = [_middle(vector, params.density, params.gamma) for vector in part.vectors]
    weights = params.weights_of(len(values))
    if not params.consensus:
        return compute_weighted_sum(weights, values, params.normalize)
    signs = elect(values, "mass", weights)
    return agreeing_mean(values, weights, signs, zero_is_positive=True, divide=params.normalize)


def _middle(values: torch.Tensor, density: float, gamma: float) -> torch.Tensor:
    """Returns ``values`` with 0 outside the kept band of magnitudes; equal magnitudes rank by
    place."""
    if density == 1.0:
        return values
    count = values.numel()
    kept = int(density * count)
    smallest = max(0, count - kept - int(gamma * count))
    chosen = values.abs().flatten().sort(stable=True).indices[smallest : smallest + kept]
    flat = torch.zeros_like(values).flatten()
    flat[chosen] = values.flatten()[chosen]
    return flat.reshape(values.shape)


METHODS.register(
    "breadcrumbs",
    MergeMethod(
        params=BreadcrumbsParams, combine=combine, donors=one_per_weight, neutral={"density": 1.0}
    ),
)
