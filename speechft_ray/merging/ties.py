"""TIES: trims each task vector, elects one sign per position, averages the values that have it
(arXiv 2306.01708).

Speech-FT (arXiv 2502.12672, Eq. 4) merges with TIES and states none of its settings. The defaults
are those of the authors' code (github.com/prateeky2806/ties-merging, ``src/utils/merge_utils.py``;
README example: K = 20, mass, dis-mean, lambda 1).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field, model_validator

from speechft_ray.merging._consensus import (
    Elect,
    compute_agreeing_mean,
    elect,
    is_majority_positive,
    require_votes,
)
from speechft_ray.merging._trim import Cuts, compute_cuts, trim_vectors
from speechft_ray.merging.base import METHODS, AveragedParams, MergeMethod, one_per_weight
from speechft_ray.merging.param_reader import ParamReader, ParamSlice

_MERGEKIT = {"scope": "tensor", "kept": "exact", "weigh_election": True, "zero_sign": "positive"}


class TiesParams(AveragedParams):
    """Parameters of TIES; the defaults are those of the authors' code, which has no weights."""

    density: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of the positions of a task vector that the trim keeps; 1 keeps all. Positions of frozen
    parameters count."""
    scope: Literal["global", "tensor"] = "global"
    """``global``: one threshold for the whole task vector (the authors' code). ``tensor``: one per
    tensor (mergekit, PEFT)."""
    kept: Literal["threshold", "exact"] = "threshold"
    """``threshold``: int(n * density) + 1 positions and all that tie with the last (the authors'
    code). ``exact``: int(n * density), at least 1; of equal magnitudes the first ones (mergekit);
    only with ``scope: tensor``."""
    elect: Elect = "mass"
    """The sign of a position is that of the summed values (``mass``) or of the summed signs
    (``count``)."""
    zero_sign: Literal["majority", "positive"] = "majority"
    """Sign of a position whose sum is 0: that of all elected signs together (the authors' code), or
    + (mergekit)."""
    weigh_election: bool = False
    """Whether the weights multiply the values that elect a sign (mergekit), or only those that are
    averaged."""
    like: Literal["original", "mergekit"] = "original"
    """``mergekit``: its conventions, for ``scope``, ``kept``, ``zero_sign`` and ``weigh_election``,
    where not set here. Its own default for ``density`` is 1."""

    @model_validator(mode="before")
    @classmethod
    def _conventions(cls, raw: Any) -> Any:
        return (
            {**_MERGEKIT, **raw} if isinstance(raw, dict) and raw.get("like") == "mergekit" else raw
        )

    @model_validator(mode="after")
    def _fits(self) -> TiesParams:
        require_votes(self.weights)
        if self.kept == "exact" and self.scope == "global":
            raise ValueError(
                "`kept: exact` breaks ties by place within a tensor, so it needs `scope: tensor`"
            )
        return self


class TiesGlobals(NamedTuple):
    """Precomputed values of TIES."""

    cuts: Cuts
    zero_is_positive: bool
    """Whether a position whose sum is 0 counts as +."""


def precompute(params: TiesParams, reader: ParamReader) -> TiesGlobals:
    """Computes the thresholds, then the majority of the elected signs.

    Reads a float32 model up to three times.
    """
    cuts = compute_cuts(reader, params.density, params.scope, params.kept)
    if params.zero_sign == "positive":
        return TiesGlobals(cuts, True)
    signs = (
        elect(trim_vectors(block, cuts), params.elect, _votes(params)) for block in reader.blocks()
    )
    return TiesGlobals(cuts, is_majority_positive(signs))


def combine(params: TiesParams, precomputed: TiesGlobals, part: ParamSlice) -> torch.Tensor:
    """Returns the mean (``normalize``) or sum of the trimmed values that have the elected sign; 0
    where none has it."""
    values = trim_vectors(part, precomputed.cuts)
    return compute_agreeing_mean(
        values,
        params.weights_of(len(values)),
        elect(values, params.elect, _votes(params)),
        zero_is_positive=precomputed.zero_is_positive,
        divide=params.normalize,
    )


def _votes(params: TiesParams) -> tuple[float, ...] | None:
    return params.weights if params.weigh_election else None


METHODS.register(
    "ties",
    MergeMethod(
        params=TiesParams,
        combine=combine,
        precompute=precompute,
        blockwise=True,
        donors=one_per_weight,
        neutral={"density": 1.0},
    ),
)
