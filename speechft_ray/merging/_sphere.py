"""Tensors seen as a length and a direction; angles are measured in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from speechft_ray.merging.param_reader import ParamSlice

On = Literal["vectors", "weights"]


def to_points(on: On, one: ParamSlice) -> list[torch.Tensor]:
    """Returns what is turned, in float64: the task vectors, or the weights of the donors."""
    return [
        vector.double() if on == "vectors" else one.base.double() + vector.double()
        for vector in one.vectors
    ]


def to_vector(on: On, point: torch.Tensor, one: ParamSlice) -> torch.Tensor:
    """Returns the task vector of a point."""
    return (point if on == "vectors" else point - one.base.double()).to(one.base.dtype)


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    """Returns the cosine between two tensors; 0 when one of them is 0."""
    lengths = float(torch.linalg.vector_norm(one)) * float(torch.linalg.vector_norm(other))
    return max(-1.0, min(1.0, float((one * other).sum()) / lengths)) if lengths else 0.0


def mean(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Returns the mean of tensors, added in the order given."""
    total = tensors[0].clone()
    for tensor in tensors[1:]:
        total.add_(tensor)
    return total.div_(len(tensors))
