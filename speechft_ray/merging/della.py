"""DELLA: drops small changes more often than large ones, rescales the others, elects signs and
averages (arXiv 2406.11617).

Positions are ranked by magnitude within their row, as in the authors' code
(github.com/declare-lab/della, a fork of mergekit). The probability of being kept rises linearly
with the rank, from density - epsilon to density + epsilon.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator

from speechft_ray.merging._consensus import ConsensusParams, combine_values
from speechft_ray.merging._drop import Rescale, draw_mask, mask_and_rescale
from speechft_ray.merging.base import (
    METHODS,
    MergeMethod,
    Shares,
    one_per_weight,
    spread,
)
from speechft_ray.merging.param_reader import ParamSlice

Epsilon = Annotated[float, Field(ge=0)]


class DellaParams(ConsensusParams):
    """Parameters of DELLA. The paper searches the drop rate, so ``density`` and ``epsilon`` have no
    published default."""

    by_donor: ClassVar[tuple[str, ...]] = ("weights", "density", "epsilon")
    conventions: ClassVar[Mapping[str, Mapping[str, Any]]] = {"mergekit": {"rescale": "l1"}}

    density: Shares = 0.7
    """Mean probability that a position is kept; 1 keeps all, whatever ``epsilon`` is (mergekit's
    default). One for all donors, or one for each."""
    epsilon: Epsilon | Annotated[tuple[Epsilon, ...], Field(min_length=1)] = 0.15
    """Difference from ``density`` for the smallest and for the largest value of a row (mergekit's
    default). One for all donors, or one for each."""
    rescale: Rescale = "inverse"
    """Rescale after the drop: ``inverse`` divides by each position's probability (the paper),
    ``l1`` restores the tensor's L1 norm (mergekit), ``none`` does nothing."""
    consensus: bool = True
    """Whether signs are elected, from the weighted values; if not, the task vectors are averaged
    (``della_linear``)."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Masks depend on the seed, the donor's position and the tensor's name alone."""
    like: Literal["original", "mergekit"] = "original"
    """``mergekit``: ``rescale: l1``, and ``normalize: false`` without consensus, where not set
    here."""

    @model_validator(mode="before")
    @classmethod
    def _sum_without_consensus(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or raw.get("like") != "mergekit":
            return raw
        return {"normalize": raw.get("consensus", True), **raw}

    @model_validator(mode="after")
    def _fits(self) -> DellaParams:
        donors = max(self.count_values().values(), default=1)
        for density, epsilon in zip(
            spread(self.density, donors), spread(self.epsilon, donors), strict=True
        ):
            if density < 1 and not epsilon < min(density, 1 - density):
                raise ValueError(
                    f"`density` {density:g} plus or minus `epsilon` {epsilon:g} "
                    "must lie between 0 and 1: lower `epsilon`"
                )
        return self


def combine(params: DellaParams, precomputed: None, part: ParamSlice) -> torch.Tensor:
    """Returns the mean or sum of the task vectors after the drop; with ``consensus``, of the values
    that have the elected sign."""
    donors = len(part.vectors)
    densities, epsilons = spread(params.density, donors), spread(params.epsilon, donors)
    values = [
        _drop(params, densities[donor], epsilons[donor], donor, vector, part.name)
        for donor, vector in enumerate(part.vectors)
    ]
    return combine_values(params, values)


def compute_keep_probabilities(
    values: torch.Tensor, density: float, epsilon: float
) -> torch.Tensor:
    """Returns the probability that each position is kept, float64, by the rank of its magnitude in
    its row.

    Equal magnitudes rank by position. A row holds the values of one output, ``values[i]``; a vector
    is one row. A row of one position gets ``density``.
    """
    count = values.numel()
    length = count // values.shape[0] if count and values.dim() > 1 else count
    if length < 2:
        return torch.full_like(values, density, dtype=torch.float64)
    rows = values.abs().reshape(-1, length)
    order = rows.argsort(dim=1, stable=True)
    evenly = torch.linspace(
        density - epsilon, density + epsilon, length, dtype=torch.float64, device=values.device
    )
    return (
        torch.zeros_like(rows, dtype=torch.float64)
        .scatter_(1, order, evenly.expand_as(rows))
        .reshape(values.shape)
    )


def _drop(
    params: DellaParams,
    density: float,
    epsilon: float,
    donor: int,
    vector: torch.Tensor,
    name: str,
) -> torch.Tensor:
    if density == 1.0:
        return vector
    probabilities = compute_keep_probabilities(vector, density, epsilon)
    return mask_and_rescale(
        vector,
        draw_mask(probabilities, params.seed, donor, name, vector),
        probabilities.to(vector.dtype),
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
