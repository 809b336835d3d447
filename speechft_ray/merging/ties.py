"""TIES: trims each task vector, elects one sign per position, averages the values that have it
(arXiv 2306.01708).

Speech-FT (arXiv 2502.12672, Eq. 4) merges with TIES and states none of its settings. The defaults
are those of the authors' code (github.com/prateeky2806/ties-merging, ``src/utils/merge_utils.py``;
README example: K = 20, mass, dis-mean, lambda 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import model_validator

from speechft_ray.merging._consensus import (
    compute_agreeing_max,
    compute_agreeing_mean,
    compute_present_mean,
    elect,
    elect_by_norm,
    is_majority_positive,
    require_votes,
)
from speechft_ray.merging._trim import (
    Cuts,
    Kept,
    Scope,
    compute_cuts,
    compute_trim_gains,
    trim_vectors,
)
from speechft_ray.merging.base import METHODS, AveragedParams, MergeMethod, Shares, one_per_weight
from speechft_ray.merging.param_reader import ParamReader, ParamSlice


class TiesParams(AveragedParams):
    """Parameters of TIES; the defaults are those of the authors' code, which has no weights."""

    by_donor: ClassVar[tuple[str, ...]] = ("weights", "density")
    conventions: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "mergekit": {
            "scope": "tensor",
            "kept": "exact",
            "weigh_election": True,
            "zero_sign": "positive",
        },
        "mergelm": {"kept": "mask_rate"},
    }

    density: Shares = 0.2
    """Share of the positions of a task vector that the trim keeps; 1 keeps all. Positions of frozen
    parameters count. One for all donors, or one for each."""
    scope: Scope = "global"
    """``global``: one threshold for the whole task vector (the authors' code). ``tensor``: one per
    tensor (mergekit, PEFT)."""
    kept: Kept = "threshold"
    """``threshold``: int(n * density) + 1 positions and all that tie with the last (the authors'
    code). ``mask_rate``: one more where n * density is not whole, since the positions to drop are
    counted, int(n * (1 - density)) - 1 (MergeLM). ``exact``: int(n * density), at least 1; of equal
    magnitudes the first ones (mergekit); only with ``scope: tensor``."""
    rescale: Literal["none", "l1"] = "none"
    """``l1`` restores each tensor's L1 norm after the trim (mergekit's ``rescale: true``)."""
    elect: Literal["mass", "count", "normfrac", "normmass", "none"] = "mass"
    """The sign of a position is that of the summed values (``mass``), of the summed signs
    (``count``), of the value that is the largest share of its donor's squared norm (``normfrac``),
    or of the sum of these shares (``normmass``). ``none``: every value counts that is not 0."""
    aggregate: Literal["mean", "max"] = "mean"
    """The values with the elected sign are averaged (dis-mean; dis-sum with ``normalize: false``),
    or the one of largest magnitude is taken (dis-max)."""
    zero_sign: Literal["majority", "positive"] = "majority"
    """Sign of a position whose sum is 0: that of all elected signs together (the authors' code), or
    + (mergekit)."""
    weigh_election: bool = False
    """Whether the weights multiply the values that elect a sign (mergekit), or only those that are
    averaged."""
    like: Literal["original", "mergekit", "mergelm"] = "original"
    """The conventions of a program, where not set here. ``mergekit``: ``scope: tensor``, ``kept:
    exact``, ``weigh_election: true``, ``zero_sign: positive``; its own default for ``density`` is
    1. ``mergelm``: ``kept: mask_rate``."""

    @model_validator(mode="after")
    def _fits(self) -> TiesParams:
        require_votes(self.weights)
        if self.kept == "exact" and self.scope == "global":
            raise ValueError(
                "`kept: exact` breaks ties by place within a tensor, so it needs `scope: tensor`"
            )
        if self.elect == "none" and self.aggregate == "max":
            raise ValueError(
                "`aggregate: max` needs an elected sign; the largest value of any sign is merge "
                "method `magmax`"
            )
        return self


class TiesGlobals(NamedTuple):
    """Precomputed values of TIES."""

    cuts: Cuts
    gains: Mapping[str, tuple[float, ...]]
    """Factors of the trimmed values, by name of the group, then by donor; empty without
    ``rescale``."""
    squares: tuple[float, ...]
    """Squared norm of each trimmed task vector, for elections by norm."""
    zero_is_positive: bool
    """Whether a position whose sum is 0 counts as +."""


def precompute(params: TiesParams, reader: ParamReader) -> TiesGlobals:
    """Computes the thresholds, the gains and norms where they are needed, then the majority of the
    elected signs.

    Reads the model once for each of them, and a sample of it before. Where the sample misleads, the
    thresholds of a float32 model take two times more.
    """
    cuts = compute_cuts(reader, params.density, params.scope, params.kept)
    gains = compute_trim_gains(reader, cuts) if params.rescale == "l1" else {}
    squares = (0.0,) * reader.donors
    if params.elect in ("normfrac", "normmass"):
        for block in reader.blocks():
            trimmed = _trim(block, cuts, gains)
            squares = tuple(
                total + float(values.double().square().sum())
                for total, values in zip(squares, trimmed, strict=True)
            )
    globals_ = TiesGlobals(cuts, gains, squares, zero_is_positive=True)
    if params.zero_sign == "positive" or params.elect == "none":
        return globals_
    signs = (_elect(params, globals_, _trim(block, cuts, gains)) for block in reader.blocks())
    return globals_._replace(zero_is_positive=is_majority_positive(signs))


def combine(params: TiesParams, precomputed: TiesGlobals, part: ParamSlice) -> torch.Tensor:
    """Returns the mean (``normalize``), sum or largest of the trimmed values that have the elected
    sign; 0 where none has it."""
    values = _trim(part, precomputed.cuts, precomputed.gains)
    weights = params.weights_of(len(values))
    if params.elect == "none":
        return compute_present_mean(values, weights, divide=params.normalize)
    signs = _elect(params, precomputed, values)
    zero_is_positive = precomputed.zero_is_positive
    if params.aggregate == "max":
        return compute_agreeing_max(values, weights, signs, zero_is_positive=zero_is_positive)
    return compute_agreeing_mean(
        values, weights, signs, zero_is_positive=zero_is_positive, divide=params.normalize
    )


def _trim(
    part: ParamSlice, cuts: Cuts, gains: Mapping[str, tuple[float, ...]]
) -> list[torch.Tensor]:
    values = trim_vectors(part, cuts)
    if not gains:
        return values
    return [value * gain for value, gain in zip(values, gains[part.name], strict=True)]


def _elect(
    params: TiesParams, precomputed: TiesGlobals, values: Sequence[torch.Tensor]
) -> torch.Tensor:
    if params.elect in ("normfrac", "normmass"):
        return elect_by_norm(values, params.elect, precomputed.squares)
    assert params.elect in ("mass", "count")
    return elect(values, params.elect, params.weights if params.weigh_election else None)


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
