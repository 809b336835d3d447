"""Arcee fusion: keeps only the donor's most important changes, tensor by tensor (arcee.ai; mergekit
0.1.5, ``arcee_fusion.py``).

The importance of a change is its magnitude times the Kullback-Leibler divergence (doi
10.1214/aoms/1177729694) of the softmax of its row in the donor from that in the base.
"""

from __future__ import annotations

import torch

from speechft_ray.merging.base import METHODS, DonorRange, MergeMethod, MergeParams
from speechft_ray.merging.param_reader import ParamSlice

SMALLEST = 1e-8
"""Added to each probability (mergekit)."""
FENCE = 1.5
"""Interquartile ranges above the median from which on a change is important (mergekit)."""


class ArceeFusionParams(MergeParams):
    """Arcee fusion has no parameter of its own."""


def donors(params: ArceeFusionParams) -> DonorRange:
    """Exactly one."""
    return 1, 1


def combine(params: ArceeFusionParams, precomputed: None, part: ParamSlice) -> torch.Tensor:
    """Returns the task vector where its importance reaches the median plus 1.5 interquartile
    ranges, else 0."""
    (vector,) = part.vectors
    importance = compute_importance(part.base.double(), vector.double())
    if not importance.numel():
        return vector
    ordered = importance.flatten().sort().values
    first, middle, third = (
        float(ordered[int(share * (ordered.numel() - 1))]) for share in (0.25, 0.5, 0.75)
    )
    threshold = middle + FENCE * (third - first)
    return vector * (importance >= threshold)


def compute_importance(base: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """Returns |vector| times the divergence of each row, along the last axis, of the donor from the
    base."""
    ours, theirs = (torch.softmax(values, dim=-1) + SMALLEST for values in (base + vector, base))
    divergence = (ours * (ours / theirs).log()).sum(dim=-1, keepdim=vector.dim() > 0)
    return vector.abs() * divergence


METHODS.register(
    "arcee_fusion", MergeMethod(params=ArceeFusionParams, combine=combine, donors=donors)
)
