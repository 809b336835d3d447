"""DELLA: drop small changes more often than large ones, scale up what is left, elect signs and
average (arXiv 2406.11617).

Positions are ranked by magnitude within their row, as in the authors' code
(github.com/declare-lab/della, a fork of mergekit); the chance to be kept rises evenly with the
rank, from density - epsilon to density + epsilon.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator

from speechft_ray.merging._consensus import agreeing_mean, elect, require_votes
from speechft_ray.merging._drop import Rescale, draw_mask, mask_and_rescale
from speechft_ray.merging.base import METHODS, AveragedParams, MergeMethod, one_per_weight
from speechft_ray.merging.linear import compute_weighted_sum
from speechft_ray.merging.param_reader import ParamSlice


class DellaParams(AveragedParams):
    """Parameters of DELLA. The paper searches the drop rate, so ``density`` and ``epsilon`` have no
    published default."""

    density: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Mean chance of a position to be kept; 1 keeps all, whatever ``epsilon`` is (mergekit's
    default)."""
    epsilon: Annotated[float, Field(ge=0)] = 0.15
    """How far the chance of the smallest and of the largest value of a row is from ``density``
    (mergekit's default)."""
    rescale: Rescale = "inverse"
    """What makes up for the drop: division by each position's chance (the paper), the tensor's L1
    norm restored (mergekit), or nothing."""
    consensus: bool = True
    """Whether signs are elected, from the weighted values; without it the task vectors are averaged
    (``della_linear``)."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Masks are drawn from the seed, the donor's place and the tensor's name; nothing else has an
    influence."""
    like: Literal["original", "mergekit"] = "original"
    """``mergekit``: ``rescale: l1``, and ``normalize: false`` without consensus, where not set
    here."""

    @model_validator(mode="before")
    @classmethod
    def _conventions(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or raw.get("like") != "mergekit":
            return raw
        return {"rescale": "l1", "normalize": raw.get("consensus", True), **raw}

    @model_validator(mode="after")
    def _fits(self) -> DellaParams:
        if self.density < 1 and not self.epsilon < min(self.density, 1 - self.density):
            raise ValueError(
                f"`density` {self.density:g} plus or minus `epsilon` {self.epsilon:g} must lie between 0 and 1: lower `epsilon`"
            )
        if self.consensus:
            require_votes(self.weights)
        return self


def combine(params: DellaParams, precomputed: None, part: ParamSlice) -> torch.Tensor:
    """Returns the mean or sum of the dropped task vectors, of those that have the elected sign with
    ``consensus``."""
    values = [_drop(params, donor, vector, part.name) for donor, vector in enumerate(part.vectors)]
    weights = params.weights_of(len(values))
    if not params.consensus:
        return compute_weighted_sum(weights, values, params.normalize)
    signs = elect(values, "mass", weights)
    return agreeing_mean(values, weights, signs, zero_is_positive=True, divide=params.normalize)


def keep_chances(values: torch.Tensor, density: float, epsilon: float) -> torch.Tensor:
    """Returns the chance of each position to be kept, float64, by its rank of magnitude in its row;
    equal ones by place.

    A row is all that one output has, ``values[i]``; a vector is one row. A row of one position gets
    ``density``.
    """
    rows = values.abs().reshape(values.shape[0] if values.dim() > 1 else 1, -1)
    length = rows.shape[1]
    if length < 2:
        return torch.full_like(values, density, dtype=torch.float64)
    order = rows.argsort(dim=1, stable=True)
    evenly = torch.linspace(
        density - epsilon, density + epsilon, length, dtype=torch.float64, device=values.device
    )
    return (
        torch.zeros_like(rows, dtype=torch.float64)
        .scatter_(1, order, evenly.expand_as(rows))
        .reshape(values.shape)
    )


def _drop(params: DellaParams, donor: int, vector: torch.Tensor, name: str) -> torch.Tensor:
    if params.density == 1.0:
        return vector
    chances = keep_chances(vector, params.density, params.epsilon)
    return mask_and_rescale(
        vector,
        draw_mask(chances, params.seed, donor, name, vector),
        chances.to(vector.dtype),
        params.rescale,
    )


METHODS.register(
    "della",
    MergeMethod(
        params=DellaParams,
        combine=combine,
        donors=one_per_weight,
        neutral={"density": 1.0},
        symmetric=False,
    ),
)
