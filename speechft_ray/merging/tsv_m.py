"""TSV-M: keeps the strongest singular directions of each task and makes those of all tasks
orthogonal (arXiv 2412.00081).

Only matrices have singular vectors. All other tensors, convolutions among them, are averaged, as in
the authors' code (github.com/AntoAndGar/task_singular_vectors).
"""

from __future__ import annotations

import torch

from speechft_ray.merging._sphere import mean
from speechft_ray.merging.base import METHODS, MergeMethod, MergeParams, Share
from speechft_ray.merging.param_reader import ParamSlice


class TsvMParams(MergeParams):
    """Parameters of TSV-M; the paper's alpha is ``scale``, 1."""

    boost: Share = 1.0
    """Raises the weak singular values of each donor to the one at which the sum of the larger ones
    reaches this share of the whole sum; 1 raises none. 0.3 is BoostedTSV-M's choice for speech
    recognition (arXiv 2603.05354)."""


def combine(params: TsvMParams, precomputed: None, part: ParamSlice) -> torch.Tensor:
    """Returns U S V of the kept directions of all donors, each donor with its share 1/n of the
    rank, at least 1.

    Singular values are boosted first. U and V are replaced by the nearest matrices with orthogonal
    columns. A donor whose task vector is 0 adds no direction. A lone donor keeps its whole rank,
    which is the task vector itself.
    """
    if len(part.vectors) == 1 and params.boost == 1.0:
        return part.vectors[0]
    if part.base.dim() != 2:
        return mean(part.vectors)
    rank = max(1, min(part.base.shape) // len(part.vectors))
    triples = [
        _truncate_svd(vector, rank, params.boost) for vector in part.vectors if bool(vector.any())
    ]
    if not triples:
        return torch.zeros_like(part.base)
    left, values, right = (torch.cat(each, dim=-1) for each in zip(*triples, strict=True))
    return (orthogonalize(left) * values) @ orthogonalize(right).T


def _truncate_svd(
    matrix: torch.Tensor, rank: int, boost: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    if boost < 1.0:
        reached = values.cumsum(0) >= boost * values.sum()
        values = values.clamp_min(float(values[int(reached.to(torch.uint8).argmax())]))
    return left[:, :rank], values[:rank], right[:rank].T


def orthogonalize(matrix: torch.Tensor) -> torch.Tensor:
    """Returns the orthogonal factor of the polar decomposition."""
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return torch.mm(left, right)


METHODS.register("tsv_m", MergeMethod(params=TsvMParams, combine=combine, neutral={}))
