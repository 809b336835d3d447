"""WUDI: optimises the task vector that interferes least with each donor, without data (arXiv
2503.08099).

The rows of a matrix' task vector stand for the inputs of its layer. Only matrices are optimised;
all other tensors are averaged. Defaults are those of the authors' code
(github.com/nathanielyvo/WUDI-Merging).
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field

from speechft_ray.merging._sphere import mean
from speechft_ray.merging.base import METHODS, MergeMethod, MergeParams
from speechft_ray.merging.param_reader import ParamSlice


class WudiParams(MergeParams):
    """Parameters of WUDI."""

    steps: Annotated[int, Field(ge=1)] = 300
    """Steps of Adam."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    """Adam's learning rate. A weight differs from the sum of the task vectors by at most about
    ``steps`` times this."""


def combine(params: WudiParams, precomputed: None, part: ParamSlice) -> torch.Tensor:
    """Minimises sum_i |(m - vector_i) vector_i^T|^2 / |vector_i|^2, from m = sum_i vector_i.

    Returns m after the last step.

    The gradient 2 (m A - B), with A = sum_i G_i, B = sum_i vector_i G_i and G_i = vector_i^T
    vector_i / |vector_i|^2, costs one product a step for any number of donors. A lone donor is its
    own minimiser.
    """
    if len(part.vectors) == 1:
        return part.vectors[0]
    if part.base.dim() != 2:
        return mean(part.vectors)
    vectors = [vector for vector in part.vectors if bool(vector.any())]
    if not vectors:
        return torch.zeros_like(part.base)
    grams = [vector.T @ vector / vector.square().sum() for vector in vectors]
    left = torch.stack(grams).sum(dim=0)
    right = torch.stack([vector @ gram for vector, gram in zip(vectors, grams, strict=True)]).sum(
        dim=0
    )
    merged = torch.stack(vectors).sum(dim=0)
    optimizer = torch.optim.Adam([merged], lr=params.learning_rate)
    for _ in range(params.steps):
        merged.grad = 2 * (merged @ left - right)
        optimizer.step()
    merged.grad = None
    return merged


METHODS.register("wudi", MergeMethod(params=WudiParams, combine=combine, neutral={}))
