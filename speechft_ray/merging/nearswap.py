"""NearSwap: follows a donor by at most ``t`` at each position
(huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001).

Where donor and base are nearer than ``t``, the donor's weight is taken; elsewhere the base moves
towards it by ``t``.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field

from speechft_ray.merging.base import METHODS, AveragedParams, MergeMethod, one_per_weight
from speechft_ray.merging.linear import compute_weighted_sum
from speechft_ray.merging.param_reader import ParamSlice


class NearswapParams(AveragedParams):
    """Parameters of NearSwap; the original takes one donor, and several are averaged here."""

    t: Annotated[float, Field(gt=0)] = 1e-4
    """Largest change of a weight (the author's choice for a language model)."""


def combine(params: NearswapParams, precomputed: None, part: ParamSlice) -> torch.Tensor:
    """Returns the weighted mean of the task vectors clipped to [-t, t]."""
    values = [vector.clamp(-params.t, params.t) for vector in part.vectors]
    return compute_weighted_sum(params.weights_of(len(values)), values, params.normalize)


METHODS.register(
    "nearswap",
    MergeMethod(
        params=NearswapParams,
        combine=combine,
        blockwise=True,
        donors=one_per_weight,
        neutral={"t": 1e30},
    ),
)
