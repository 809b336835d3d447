"""Model breadcrumbs: drops the largest and the smallest changes of each tensor and adds up the rest
(arXiv 2312.06795).

``consensus`` is mergekit's ``breadcrumbs_ties``: signs are elected before the sum. The paper
searches the shares that it masks. The defaults are the starting point in mergekit's documentation.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, model_validator

from speechft_ray.merging._consensus import compute_agreeing_mean, elect, require_votes
from speechft_ray.merging.base import METHODS, AveragedParams, MergeMethod, one_per_weight
from speechft_ray.merging.linear import compute_weighted_sum
from speechft_ray.merging.param_reader import ParamSlice


class BreadcrumbsParams(AveragedParams):
    """Parameters of breadcrumbs."""

    density: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of each tensor's positions that is kept, int(n * density) of n; 1 keeps all."""
    gamma: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Share of the largest magnitudes that is dropped first, int(n * gamma) of n: the paper's 1 -
    gamma. Less where ``density`` drops fewer positions in all."""
    normalize: bool = False
    """Whether the weighted sum is divided by the sum of the weights in it."""
    consensus: bool = False
    """Whether signs are elected, from the weighted values, and only values that agree are added."""

    @model_validator(mode="after")
    def _fits(self) -> BreadcrumbsParams:
        if self.consensus:
            require_votes(self.weights)
        return self


def combine(params: BreadcrumbsParams, precomputed: None, part: ParamSlice) -> torch.Tensor:
    """Returns the sum or mean of the masked task vectors; with ``consensus``, of the values that
    have the elected sign."""
    values = [_select_band(vector, params.density, params.gamma) for vector in part.vectors]
    weights = params.weights_of(len(values))
    if not params.consensus:
        return compute_weighted_sum(weights, values, params.normalize)
    signs = elect(values, "mass", weights)
    return compute_agreeing_mean(
        values, weights, signs, zero_is_positive=True, divide=params.normalize
    )


def _select_band(values: torch.Tensor, density: float, gamma: float) -> torch.Tensor:
    """Returns ``values`` with 0 outside the kept band of magnitudes; equal magnitudes rank by
    position."""
    if density == 1.0:
        return values
    count = values.numel()
    to_keep = int(density * count)
    first = max(0, count - to_keep - int(gamma * count))
    positions = values.abs().flatten().sort(stable=True).indices[first : first + to_keep]
    flat = torch.zeros_like(values).flatten()
    flat[positions] = values.flatten()[positions]
    return flat.reshape(values.shape)


METHODS.register(
    "breadcrumbs",
    MergeMethod(
        params=BreadcrumbsParams, combine=combine, donors=one_per_weight, neutral={"density": 1.0}
    ),
)
