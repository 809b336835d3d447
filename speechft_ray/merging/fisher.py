"""Fisher merging: weights each parameter of a donor by its Fisher information (arXiv 2111.09832).

The diagonal of the Fisher information is the mean squared gradient of the donor's loss on its
tuning set, gathered by its fine-tuning with ``gather: [fisher]``.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, model_validator

from speechft_ray.merging._consensus import require_votes
from speechft_ray.merging.base import METHODS, MergeMethod, WeightedParams, one_per_weight
from speechft_ray.merging.linear import compute_weighted_sum
from speechft_ray.merging.param_reader import ParamReader, ParamSlice


class FisherParams(WeightedParams):
    """Parameters of Fisher merging. ``weights`` are the paper's lambda."""

    balance: bool = True
    """Whether each donor's information is divided by its mean over the model, so that a loss of
    larger gradients does not outvote the others (the paper normalises as well)."""
    floor: Annotated[float, Field(gt=0)] = 1e-6
    """Smallest information of a weight, as a share of the donor's mean: weights on which no donor
    depends are averaged (MergeLM: 1e-6, of the bare value)."""

    @model_validator(mode="after")
    def _fits(self) -> FisherParams:
        require_votes(self.weights)
        return self


def precompute(params: FisherParams, reader: ParamReader) -> tuple[float, ...]:
    """Returns the mean information of each donor; 1 where all of it is 0."""
    sums, count = [0.0] * reader.donors, 0
    for part in reader:
        if part.statistics:
            count += part.base.numel()
            sums = [
                total + float(item.sum(dtype=torch.float64))
                for total, item in zip(sums, part.statistics, strict=True)
            ]
    return tuple(total / count if total else 1.0 for total in sums)


def combine(params: FisherParams, precomputed: tuple[float, ...], part: ParamSlice) -> torch.Tensor:
    """Returns sum_i(c_i * vector_i) / sum_i(c_i), with c_i the weight of the donor times its
    information.

    Parameters without statistics, which were frozen in fine-tuning, are averaged with the weights
    alone.
    """
    weights = params.weights_of(len(part.vectors))
    if not part.statistics or len(part.vectors) == 1:
        return compute_weighted_sum(weights, part.vectors, normalize=True)
    total, divisor = torch.zeros_like(part.base), torch.zeros_like(part.base)
    for weight, mean, information, vector in zip(
        weights, precomputed, part.statistics, part.vectors, strict=True
    ):
        share = (information / mean + params.floor) * (weight * (1.0 if params.balance else mean))
        total.addcmul_(share, vector)
        divisor.add_(share)
    return total.div_(divisor)


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
