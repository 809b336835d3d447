"""STAR: truncates the spectrum of each task vector, restores its sum, and averages (arXiv
2502.10339).

As in the authors' code (github.com/IBM/STAR) only matrices have a spectrum; all other tensors are
averaged.
"""

from __future__ import annotations

import torch

from speechft_ray.merging._sphere import mean
from speechft_ray.merging.base import METHODS, MergeMethod, MergeParams, Share
from speechft_ray.merging.param_reader import ParamSlice


class StarParams(MergeParams):
    """Parameters of STAR."""

    share: Share = 0.4
    """Share of the sum of the singular values that the kept ones reach (the paper's eta, 40 %); 1
    keeps all."""


def combine(params: StarParams, precomputed: None, part: ParamSlice) -> torch.Tensor:
    """Returns the mean of the truncated and rescaled task vectors."""
    if part.base.dim() != 2 or params.share == 1.0:
        return mean(part.vectors)
    return mean([truncate(vector, params.share) for vector in part.vectors])


def truncate(matrix: torch.Tensor, share: float) -> torch.Tensor:
    """Returns the matrix with its strongest directions alone, whose singular values are scaled to
    the sum of all."""
    if not bool(matrix.any()):
        return matrix
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    total = values.sum()
    rank = int(torch.searchsorted(values.cumsum(0), total * share)) + 1
    first = values[:rank]
    scaled = left[:, :rank] * (first * (total / first.sum()))
    return torch.mm(scaled, right[:rank])


METHODS.register("star", MergeMethod(params=StarParams, combine=combine, neutral={"share": 1.0}))
