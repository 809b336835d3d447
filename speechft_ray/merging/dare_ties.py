"""DARE before TIES: drops at random and rescales, then trims, elects and averages (arXiv 2311.03099
on 2306.01708).

As in the authors' code (github.com/yule-BUAA/MergeLM), the drop rate is 0.1, and TIES then trims
the whole model to 20 % itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, model_validator

from speechft_ray.merging import ties
from speechft_ray.merging._consensus import Elect, require_votes
from speechft_ray.merging._drop import Gains, Rescale, compute_gains, drop
from speechft_ray.merging.base import (
    METHODS,
    AveragedParams,
    MergeMethod,
    Share,
    Shares,
    one_per_weight,
)
from speechft_ray.merging.param_reader import ParamReader, ParamSlice


class DareTiesParams(AveragedParams):
    """Parameters of DARE's drop and of the TIES merge after it."""

    by_donor: ClassVar[tuple[str, ...]] = ("weights", "density")
    conventions: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "mergekit": {
            "rescale": "l1",
            "trim": 1.0,
            "weigh_election": True,
            "zero_sign": "positive",
            "normalize": False,
        },
        "mergelm": {"kept": "mask_rate"},
    }

    density: Shares = 0.9
    """Probability that a position is kept: 1 minus the paper's drop rate p. 1 keeps all. One for
    all donors, or one for each."""
    rescale: Rescale = "inverse"
    """Rescale after the drop: ``inverse`` divides by ``density`` (the paper), ``l1`` restores the
    tensor's L1 norm (mergekit), ``none`` does nothing."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Masks depend on the seed, the donor's position and the tensor's name alone."""
    trim: Share = 0.2
    """Share of the positions that the trim of TIES keeps after the drop; 1 keeps all (mergekit)."""
    scope: Literal["global", "tensor"] = "global"
    """Whether the trim has one threshold for the whole task vector or one per tensor."""
    kept: Literal["threshold", "mask_rate"] = "threshold"
    """Cut of the trim, as in ``ties``: that of the TIES authors' code, or MergeLM's."""
    elect: Elect = "mass"
    """The sign of a position is that of the summed values (``mass``) or of the summed signs
    (``count``)."""
    zero_sign: Literal["majority", "positive"] = "majority"
    """Sign of a position whose sum is 0: that of all elected signs together, or + (mergekit)."""
    weigh_election: bool = False
    """Whether the weights multiply the values that elect a sign (mergekit), or only those that are
    averaged."""
    like: Literal["original", "mergekit", "mergelm"] = "original"
    """The conventions of a program, where not set here. ``mergekit``: ``rescale: l1``, no trim, a
    weighted election, + for zero sums and ``normalize: false``; its own default for ``density`` is
    1. ``mergelm``: ``kept: mask_rate``."""

    @model_validator(mode="after")
    def _fits(self) -> DareTiesParams:
        require_votes(self.weights)
        return self

    def to_ties_params(self) -> ties.TiesParams:
        """Returns the parameters of the TIES merge."""
        return ties.TiesParams(
            density=self.trim,
            scope=self.scope,
            kept=self.kept,
            elect=self.elect,
            zero_sign=self.zero_sign,
            weights=self.weights,
            normalize=self.normalize,
            weigh_election=self.weigh_election,
        )


class DareTiesGlobals(NamedTuple):
    """Precomputed values of DARE and of the TIES merge after it."""

    gains: Gains
    ties: ties.TiesGlobals


def precompute(params: DareTiesParams, reader: ParamReader) -> DareTiesGlobals:
    """Precomputes DARE on the task vectors, then TIES on the task vectors after the drop."""
    gains = compute_gains(reader, params.density, params.rescale, params.seed)
    return DareTiesGlobals(
        gains,
        ties.precompute(
            params.to_ties_params(),
            reader.with_transform(lambda part: _drop_slice(params, gains, part)),
        ),
    )


def combine(params: DareTiesParams, precomputed: DareTiesGlobals, part: ParamSlice) -> torch.Tensor:
    """Returns the TIES merge of the task vectors after the drop."""
    return ties.combine(
        params.to_ties_params(), precomputed.ties, _drop_slice(params, precomputed.gains, part)
    )


def _drop_slice(params: DareTiesParams, gains: Gains, part: ParamSlice) -> ParamSlice:
    return replace(part, vectors=drop(part, params.density, params.rescale, params.seed, gains))


METHODS.register(
    "dare_ties",
    MergeMethod(
        params=DareTiesParams,
        combine=combine,
        precompute=precompute,
        blockwise=True,
        donors=one_per_weight,
        neutral={"density": 1.0, "trim": 1.0},
        symmetric=False,
    ),
)
