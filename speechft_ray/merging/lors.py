"""LoRS: keeps of each task vector a low-rank part and the largest values of what that leaves
(arXiv 2502.17380).

Made for multilingual speech recognition and translation. Only matrices are decomposed; all other
tensors, convolutions among them, are added up as they are.
"""

from __future__ import annotations

import torch

from speechft_ray.merging.base import (
    METHODS,
    AveragedParams,
    MergeMethod,
    Share,
    one_per_weight,
)
from speechft_ray.merging.linear import compute_weighted_sum
from speechft_ray.merging.param_reader import ParamSlice


class LorsParams(AveragedParams):
    """Parameters of LoRS. The paper searches both shares."""

    rank: Share = 0.1
    """Share of the singular values that is kept, the largest first, int(share * r) of r, at least
    1."""
    density: Share = 0.1
    """Share of the positions of the remainder that is kept, the largest magnitudes first,
    int(share * n) of n; 1 keeps the whole task vector."""
    normalize: bool = False
    """Whether the weighted sum is divided by the sum of the weights in it."""


def combine(params: LorsParams, precomputed: None, part: ParamSlice) -> torch.Tensor:
    """Returns the weighted sum of low-rank part plus sparse part of each donor."""
    values = part.vectors
    if part.base.dim() == 2 and params.density < 1.0:
        values = tuple(decompose(vector, params.rank, params.density) for vector in values)
    return compute_weighted_sum(params.weights_of(len(values)), values, params.normalize)


def decompose(matrix: torch.Tensor, rank: float, density: float) -> torch.Tensor:
    """Returns L + S: L the first singular triples of the matrix, S the largest values of the matrix
    minus L."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    count = max(1, int(rank * values.numel()))
    low = torch.mm(left[:, :count] * values[:count], right[:count])
    rest = (matrix - low).flatten()
    places = rest.abs().sort(descending=True, stable=True).indices[: int(density * rest.numel())]
    sparse = torch.zeros_like(rest)
    sparse[places] = rest[places]
    return low + sparse.reshape(matrix.shape)


METHODS.register(
    "lors",
    MergeMethod(
        params=LorsParams, combine=combine, donors=one_per_weight, neutral={"density": 1.0}
    ),
)
