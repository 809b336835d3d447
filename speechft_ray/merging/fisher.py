"""Fisher merging: weights each parameter of a donor by its Fisher information (arXiv 2111.09832).

The diagonal of the Fisher information is the mean squared gradient of the donor's loss on its
tuning set, gathered by its fine-tuning with ``gather: [fisher]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, model_validator

from speechft_ray.merging._consensus import require_votes
from speechft_ray.merging.base import METHODS, MergeMethod, WeightedParams, one_per_weight
from speechft_ray.merging.linear import compute_weighted_sum
from speechft_ray.merging.param_reader import ParamReader, ParamSlice


class FisherParams(WeightedParams):
    """Parameters of Fisher merging. ``weights`` are the paper's lambda."""

    conventions: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "mergelm": {"balance": "norm", "floor_as": "added"},
        "wise_ft": {"balance": False, "floor_as": "minimum", "floor": 1e-8},
    }

    balance: bool | Literal["norm"] = True
    """Whether each donor's information is divided by its mean over the model, so that a loss of
    larger gradients does not outvote the others (the paper normalises as well); ``norm``: by its
    Euclidean norm over the model plus ``floor`` (MergeLM)."""
    floor: Annotated[float, Field(gt=0)] = 1e-6
    """Keeps information off 0: weights on which no donor depends are averaged."""
    floor_as: Literal["share", "added", "minimum"] = "share"
    """How the floor counts: as a ``share`` of the donor's mean that is added, ``added`` to the bare
    information (MergeLM, 1e-6), or as the ``minimum`` value that it may have (WiSE-FT, 1e-8)."""
    like: Literal["original", "mergelm", "wise_ft"] = "original"
    """The conventions of a program, where not set here. ``mergelm``: ``balance: norm``, ``floor_as:
    added``. ``wise_ft``: ``balance: false``, ``floor_as: minimum``, ``floor: 1e-8``."""

    @model_validator(mode="after")
    def _fits(self) -> FisherParams:
        require_votes(self.weights)
        return self


class FisherGlobals(NamedTuple):
    """The information of each donor over the whole model."""

    means: tuple[float, ...]
    """1 where all information is 0."""
    norms: tuple[float, ...]


def precompute(params: FisherParams, reader: ParamReader) -> FisherGlobals:
    """Computes mean and Euclidean norm of each donor's information."""
    sums, squares, count = [0.0] * reader.donors, [0.0] * reader.donors, 0
    for part in reader:
        if part.statistics:
            count += part.base.numel()
            for donor, item in enumerate(part.statistics):
                sums[donor] += float(item.sum(dtype=torch.float64))
                squares[donor] += float(item.double().square().sum())
    return FisherGlobals(
        means=tuple(total / count if total else 1.0 for total in sums),
        norms=tuple(square**0.5 for square in squares),
    )


def combine(params: FisherParams, precomputed: FisherGlobals, part: ParamSlice) -> torch.Tensor:
    """Returns sum_i(c_i * vector_i) / sum_i(c_i), with c_i the weight of the donor times its
    information.

    Parameters without statistics, which were frozen in fine-tuning, are averaged with the weights
    alone.
    """
    weights = params.weights_of(len(part.vectors))
    if not part.statistics or len(part.vectors) == 1:
        return compute_weighted_sum(weights, part.vectors, normalize=True)
    total, divisor = torch.zeros_like(part.base), torch.zeros_like(part.base)
    for donor, (weight, information, vector) in enumerate(
        zip(weights, part.statistics, part.vectors, strict=True)
    ):
        share = _floor(params, information, precomputed.means[donor]) * (
            weight * _balance(params, precomputed, donor)
        )
        total.addcmul_(share, vector)
        divisor.add_(share)
    return total.div_(divisor)


def _floor(params: FisherParams, information: torch.Tensor, mean: float) -> torch.Tensor:
    """Returns the information over its mean (``share``), or the bare one, with the floor."""
    if params.floor_as == "share":
        return information / mean + params.floor
    if params.floor_as == "added":
        return information + params.floor
    return information.clamp_min(params.floor)


def _balance(params: FisherParams, precomputed: FisherGlobals, donor: int) -> float:
    """Returns the factor of what ``_floor`` returns."""
    mean = precomputed.means[donor]
    unit = mean if params.floor_as == "share" else 1.0
    if params.balance == "norm":
        return unit / (precomputed.norms[donor] + params.floor)
    return unit / mean if params.balance else unit


METHODS.register(
    "fisher",
    MergeMethod(
        params=FisherParams,
        combine=combine,
        precompute=precompute,
        donors=one_per_weight,
        needs="fisher",
        neutral={},
    ),
)
