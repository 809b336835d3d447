"""TIES: trim each task vector, elect one sign per position, average what agrees (arXiv 2306.01708).

Speech-FT (arXiv 2502.12672, Eq. 4) merges with TIES and states none of its settings. The defaults are those of the authors'
code (github.com/prateeky2806/ties-merging, ``src/utils/merge_utils.py``; README example: K = 20, mass, dis-mean, lambda 1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field, model_validator

from speechft_ray.merging._consensus import Elect, agreeing_mean, elect, majority_is_positive
from speechft_ray.merging._selection import kth_smallest
from speechft_ray.merging.base import METHODS, DonorRange, MergeMethod, MergeParams
from speechft_ray.merging.source import One, Source

_MERGEKIT = {"scope": "tensor", "kept": "exact", "weigh_election": True, "zero_sign": "positive"}


class TiesParams(MergeParams):
    """Parameters of TIES; the defaults are those of the authors' code."""

    density: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of the positions of a task vector that the trim keeps; 1 keeps all. Positions of frozen parameters count."""
    scope: Literal["global", "tensor"] = "global"
    """``global``: one threshold for the whole task vector (the authors' code). ``tensor``: one per tensor (mergekit, PEFT)."""
    kept: Literal["threshold", "exact"] = "threshold"
    """``threshold``: int(n * density) + 1 positions and all that tie with the last (the authors' code). ``exact``: int(n *
    density), at least 1; among ties those that come first (mergekit); only with ``scope: tensor``."""
    elect: Elect = "mass"
    """The sign of a position is that of the summed values (``mass``) or of the summed signs (``count``)."""
    zero_sign: Literal["majority", "positive"] = "majority"
    """Sign of a position whose sum is 0: that of all elected signs together (the authors' code), or + (mergekit)."""
    weights: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] | None = None
    """One weight per donor, in the order of the donors; ``None``: 1 each. The mean divides by the weights that agree."""
    weigh_election: bool = False
    """Whether the weights multiply the values that elect a sign (mergekit), or only those that are averaged."""
    like: Literal["original", "mergekit"] = "original"
    """``mergekit``: its conventions, for ``scope``, ``kept``, ``zero_sign`` and ``weigh_election``, where not set here. Its
    own default for ``density`` is 1."""

    @model_validator(mode="before")
    @classmethod
    def _conventions(cls, given: Any) -> Any:
        return {**_MERGEKIT, **given} if isinstance(given, dict) and given.get("like") == "mergekit" else given

    @model_validator(mode="after")
    def _counts_in_a_tensor(self) -> TiesParams:
        if self.kept == "exact" and self.scope == "global":
            raise ValueError("`kept: exact` breaks ties by place within a tensor, so it needs `scope: tensor`")
        return self


class TiesSurvey(NamedTuple):
    """What TIES must know of the whole model."""

    cuts: tuple[float, ...] | None
    """Magnitude per donor below which the trim drops; ``None`` where each tensor has its own."""
    zero_is_positive: bool
    """Whether a position whose sum is 0 counts as +."""


def donors(params: TiesParams) -> DonorRange:
    """As many donors as there are weights; any number without weights."""
    return (1, None) if params.weights is None else (len(params.weights), len(params.weights))


def survey(params: TiesParams, source: Source) -> TiesSurvey:
    """Finds the thresholds, then the majority of the elected signs; reads the model up to three times (float32)."""
    cuts = find_cuts(params, source)
    if params.zero_sign == "positive":
        return TiesSurvey(cuts, True)
    signs = (elect(_voting(params, trimmed(params, cuts, one)), params.elect) for one in source)
    return TiesSurvey(cuts, majority_is_positive(signs))


def combine(params: TiesParams, surveyed: TiesSurvey, one: One) -> torch.Tensor:
    """Returns the mean of the trimmed values that have the elected sign; 0 where none has it."""
    values = trimmed(params, surveyed.cuts, one)
    signs = elect(_voting(params, values), params.elect)
    weights = params.weights or (1.0,) * len(values)
    return agreeing_mean(values, weights, signs, surveyed.zero_is_positive, divide=True)


def find_cuts(params: TiesParams, source: Source) -> tuple[float, ...] | None:
    """Returns each donor's threshold over the whole model; ``None`` with ``scope: tensor``.

    It is the k-th smallest magnitude with k = n - int(n * density), 0 when that keeps all. Since the k-th itself is kept,
    int(n * density) + 1 positions stay, and any that tie with it.
    """
    if params.scope == "tensor":
        return None
    if params.density == 1.0:
        return (0.0,) * source.donors
    total = sum(one.base.numel() for one in source)

    def passes() -> Iterator[Sequence[torch.Tensor]]:
        return (one.vectors for one in source)

    return tuple(kth_smallest(passes, [_rank(total, params.density)] * source.donors))


def trimmed(params: TiesParams, cuts: tuple[float, ...] | None, one: One) -> list[torch.Tensor]:
    """Returns the task vectors of a part with 0 where the trim drops."""
    if cuts is not None:
        return [vector.where(vector.abs() >= cut, 0.0) for vector, cut in zip(one.vectors, cuts, strict=True)]
    return [(_largest if params.kept == "exact" else _above)(vector, params.density) for vector in one.vectors]


def _above(values: torch.Tensor, density: float) -> torch.Tensor:
    magnitudes = values.abs()
    rank = _rank(values.numel(), density)
    return values.where(magnitudes >= magnitudes.flatten().kthvalue(rank).values, 0.0) if rank else values


def _largest(values: torch.Tensor, density: float) -> torch.Tensor:
    if density == 1.0:
        return values
    count = max(1, int(density * values.numel()))
    kept = values.abs().flatten().sort(descending=True, stable=True).indices[:count]
    flat = torch.zeros_like(values).flatten()
    flat[kept] = values.flatten()[kept]
    return flat.reshape(values.shape)


def _rank(total: int, density: float) -> int:
    return total - int(total * density)


def _voting(params: TiesParams, values: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    if not params.weigh_election or params.weights is None:
        return values
    return [value * weight for value, weight in zip(values, params.weights, strict=True)]


METHODS.register(
    "ties", MergeMethod(params=TiesParams, combine=combine, survey=survey, donors=donors, neutral={"density": 1.0})
)
