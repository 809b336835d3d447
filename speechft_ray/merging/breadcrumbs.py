"""Model breadcrumbs: drops the largest and the smallest changes of each tensor and adds up the rest
(arXiv 2312.06795).

``consensus`` is mergekit's ``breadcrumbs_ties``: signs are elected before the sum. The paper
searches the shares that it masks. The defaults are the starting point in mergekit's documentation.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from speechft_ray.merging._consensus import ConsensusParams, combine_values
from speechft_ray.merging.base import (
    METHODS,
    MergeMethod,
    Shares,
    one_per_weight,
    spread,
)
from speechft_ray.merging.param_reader import ParamSlice

Gamma = Annotated[float, Field(ge=0, lt=1)]


class BreadcrumbsParams(ConsensusParams):
    """Parameters of breadcrumbs."""

    by_donor: ClassVar[tuple[str, ...]] = ("weights", "density", "gamma")

    density: Shares = 0.9
    """Share of each tensor's positions that is kept, int(n * density) of n; 1 keeps all. One for
    all donors, or one for each."""
    gamma: Gamma | Annotated[tuple[Gamma, ...], Field(min_length=1)] = 0.01
    """Share of the largest magnitudes that is dropped first, int(n * gamma) of n: the paper's 1 -
    gamma. Less where ``density`` drops fewer positions in all. One for all donors, or one for
    each."""
    rescale: Literal["none", "l1"] = "none"
    """``l1`` restores each tensor's L1 norm afterwards (mergekit's ``rescale: true``)."""
    normalize: bool = False
    """Whether the weighted sum is divided by the sum of the weights in it."""


def combine(params: BreadcrumbsParams, precomputed: None, part: ParamSlice) -> torch.Tensor:
    """Returns the sum or mean of the masked task vectors; with ``consensus``, of the values that
    have the elected sign."""
    donors = len(part.vectors)
    densities, gammas = spread(params.density, donors), spread(params.gamma, donors)
    values = [
        _select_band(vector, density, gamma)
        for vector, density, gamma in zip(part.vectors, densities, gammas, strict=True)
    ]
    if params.rescale == "l1":
        values = [
            _restore_norm(value, vector) for value, vector in zip(values, part.vectors, strict=True)
        ]
    return combine_values(params, values)


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


def _restore_norm(values: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    norm = values.abs().sum()
    return values * (before.abs().sum() / norm) if norm > 0 and values is not before else values


METHODS.register(
    "breadcrumbs",
    MergeMethod(
        params=BreadcrumbsParams, combine=combine, donors=one_per_weight, neutral={"density": 1.0}
    ),
)
