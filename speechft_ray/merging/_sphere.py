"""Splits tensors into length and direction; angles are computed in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from speechft_ray.merging.param_reader import ParamSlice

On = Literal["vectors", "weights"]


def to_points(on: On, part: ParamSlice) -> list[torch.Tensor]:
    """Returns the task vectors, or the weights of the donors, in float64."""
    return [
        vector.double() if on == "vectors" else part.base.double() + vector.double()
        for vector in part.vectors
    ]


def to_vector(on: On, point: torch.Tensor, part: ParamSlice) -> torch.Tensor:
    """Returns the task vector of such a tensor, in the base's dtype."""
    return (point if on == "vectors" else point - part.base.double()).to(part.base.dtype)


def cosine(first: torch.Tensor, second: torch.Tensor) -> float:
    """Returns the cosine between two tensors; 0 when one of them is 0."""
    lengths = float(torch.linalg.vector_norm(first)) * float(torch.linalg.vector_norm(second))
    return max(-1.0, min(1.0, float((first * second).sum()) / lengths)) if lengths else 0.0


def mean(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Returns the mean of tensors, added in their order."""
    total = tensors[0].clone()
    for tensor in tensors[1:]:
        total.add_(tensor)
    return total.div_(len(tensors))
