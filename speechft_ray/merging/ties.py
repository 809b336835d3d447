"""TIES: trim each task vector, elect one sign per position, average what agrees (arXiv 2306.01708).

Speech-FT (arXiv 2502.12672, Eq. 4) merges with TIES and states none of its settings. The defaults are those of the authors'
code (github.com/prateeky2806/ties-merging, ``src/utils/merge_utils.py``; README example: K = 20, mass, dis-mean, lambda 1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field, model_validator

from speechft_ray.merging._consensus import Elect, agreeing_mean, elect, majority_is_positive, require_votes
from speechft_ray.merging._selection import kth_smallest
from speechft_ray.merging.base import METHODS, AveragedParams, MergeMethod, one_per_weight
from speechft_ray.merging.source import One, Source

_MERGEKIT = {"scope": "tensor", "kept": "exact", "weigh_election": True, "zero_sign": "positive"}


class TiesParams(AveragedParams):
    """Parameters of TIES; the defaults are those of the authors' code, which knows no weights."""

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
    def _fits(self) -> TiesParams:
        require_votes(self.weights)
        if self.kept == "exact" and self.scope == "global":
            raise ValueError("`kept: exact` breaks ties by place within a tensor, so it needs `scope: tensor`")
        return self


class TiesSurvey(NamedTuple):
    """What TIES must know of the whole model."""

    cuts: tuple[float, ...] | None
    """Magnitude per donor below which the trim drops; ``None`` where each tensor has its own."""
    zero_is_positive: bool
    """Whether a position whose sum is 0 counts as +."""


def survey(params: TiesParams, source: Source) -> TiesSurvey:
    """Finds the thresholds, then the majority of the elected signs; reads the model up to three times (float32)."""
    cuts = find_cuts(params, source)
    if params.zero_sign == "positive":
        return TiesSurvey(cuts, True)
    blocks = source.blocks() if blockwise(params) else source
    signs = (elect(trimmed(params, cuts, one), params.elect, _votes(params)) for one in blocks)
    return TiesSurvey(cuts, majority_is_positive(signs))


def combine(params: TiesParams, surveyed: TiesSurvey, one: One) -> torch.Tensor:
    """Returns the mean (``normalize``) or sum of the trimmed values that have the elected sign; 0 where none has it."""
    values = trimmed(params, surveyed.cuts, one)
    return agreeing_mean(
        values,
        params.weights_of(len(values)),
        elect(values, params.elect, _votes(params)),
        zero_is_positive=surveyed.zero_is_positive,
        divide=params.normalize,
    )


def blockwise(params: TiesParams) -> bool:
    """With one threshold for the whole model, each position can be looked at by itself."""
    return params.scope == "global"


def find_cuts(params: TiesParams, source: Source) -> tuple[float, ...] | None:
    """Returns each donor's threshold over the whole model; ``None`` with ``scope: tensor``.

    It is the k-th smallest magnitude with k = n - int(n * density), 0 when that keeps all. Since the k-th itself is kept,
    int(n * density) + 1 positions stay, and any that tie with it.
    """
    if params.scope == "tensor":
        return None
    if params.density == 1.0:
        return (0.0,) * source.donors

    def passes() -> Iterator[Sequence[torch.Tensor]]:
        return (block.vectors for block in source.blocks())

    return tuple(kth_smallest(passes, source.donors, lambda total: _rank(total, params.density)))


def trimmed(params: TiesParams, cuts: tuple[float, ...] | None, one: One) -> list[torch.Tensor]:
    """Returns the task vectors of a part with 0 where the trim drops."""
    if cuts is not None:
        return [_from(vector, cut) for vector, cut in zip(one.vectors, cuts, strict=True)]
    return [(_largest if params.kept == "exact" else _above)(vector, params.density) for vector in one.vectors]


def _from(values: torch.Tensor, cut: float) -> torch.Tensor:
    """Returns the values of at least that magnitude, else 0."""
    if cut == 0.0:
        return values
    exact = torch.tensor(cut, dtype=values.dtype)
    return torch.nn.functional.hardshrink(values, float(exact.nextafter(torch.zeros_like(exact))))  # drops what is equal as well


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


def _votes(params: TiesParams) -> tuple[float, ...] | None:
    return params.weights if params.weigh_election else None


METHODS.register(
    "ties", MergeMethod(params=TiesParams, combine=combine, survey=survey, blockwise=blockwise, donors=one_per_weight, neutral={"density": 1.0})
)
