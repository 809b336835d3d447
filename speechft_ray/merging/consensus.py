"""Consensus task arithmetic: keeps of the summed task vectors what several tasks need (arXiv
2405.07813).

A task needs a position where its own change is large beside what the other tasks add to it: its
TALL mask. The authors' code (github.com/nik-dim/tall_masks) chooses one threshold per task on
validation data, from 0.2 to 0.6.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field

from speechft_ray.merging.base import METHODS, DonorRange, MergeMethod, MergeParams, spread
from speechft_ray.merging.linear import compute_weighted_sum
from speechft_ray.merging.param_reader import ParamSlice

Threshold = Annotated[float, Field(ge=0)]


class ConsensusParams(MergeParams):
    """Parameters of consensus task arithmetic."""

    threshold: Threshold | Annotated[tuple[Threshold, ...], Field(min_length=1)] = 0.4
    """The paper's lambda: a donor needs a position where |d_i| > threshold * |sum_j d_j - d_i|. One
    for all donors, or one for each."""
    min_donors: Annotated[int, Field(ge=1)] = 2
    """Number of donors that must need a position: 2 drops what no donor or one alone needs."""


def donors(params: ConsensusParams) -> DonorRange:
    """As many as there are thresholds, or at least ``min_donors``."""
    if isinstance(params.threshold, tuple):
        return len(params.threshold), len(params.threshold)
    return params.min_donors, None


def combine(params: ConsensusParams, precomputed: None, part: ParamSlice) -> torch.Tensor:
    """Returns the sum of the task vectors where at least ``min_donors`` donors need it, else 0."""
    count = len(part.vectors)
    total = compute_weighted_sum((1.0,) * count, part.vectors, normalize=False)
    votes = torch.zeros_like(total)
    for vector, threshold in zip(part.vectors, spread(params.threshold, count), strict=True):
        # The margin is positive where the donor needs the position.
        margin = vector.abs().sub_((total - vector).abs_(), alpha=threshold)
        votes.add_(margin.sign_().clamp_min_(0.0))
    return total.mul_(votes.sub_(params.min_donors - 0.5).sign_().clamp_min_(0.0))


METHODS.register(
    "consensus",
    MergeMethod(
        params=ConsensusParams,
        combine=combine,
        blockwise=True,
        donors=donors,
        neutral=None,
    ),
)
