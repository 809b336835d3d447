"""Karcher mean: the point of the sphere nearest to all directions, times the mean length, tensor by
tensor.

Karcher 1977 (doi 10.1002/cpa.3160300502); for merging arXiv 2603.04972 and mergekit's ``karcher``,
whose defaults these are. It extends ``slerp`` to any number of donors, and averages task vectors
unless ``on: weights`` is set.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field

from speechft_ray.merging._sphere import On, mean, to_points, to_vector
from speechft_ray.merging.base import METHODS, MergeMethod, MergeParams
from speechft_ray.merging.param_reader import ParamSlice


class KarcherParams(MergeParams):
    """Parameters of the Karcher mean."""

    on: On = "vectors"
    """What is averaged: the ``vectors`` theta_i - theta0, or the ``weights`` theta_i (mergekit)."""
    steps: Annotated[int, Field(ge=1)] = 10
    """Maximum number of steps of the descent."""
    tolerance: Annotated[float, Field(gt=0)] = 1e-5
    """Length of a step, in radians, below which the descent ends."""


def combine(params: KarcherParams, precomputed: None, part: ParamSlice) -> torch.Tensor:
    """Returns the Karcher mean of the directions times the mean length.

    Tensors of length 0 count in the mean length alone.
    """
    if len(part.vectors) == 1:
        return part.vectors[0]
    tensors = to_points(params.on, part)
    lengths = [float(torch.linalg.vector_norm(tensor)) for tensor in tensors]
    directions = [
        tensor / length for tensor, length in zip(tensors, lengths, strict=True) if length
    ]
    if not directions:
        return torch.zeros_like(part.base)
    direction = _descend(directions, params.steps, params.tolerance)
    return to_vector(params.on, direction * (math.fsum(lengths) / len(lengths)), part)


def _descend(directions: list[torch.Tensor], steps: int, tolerance: float) -> torch.Tensor:
    """Descends on the sphere from the mean direction, or from the first one where they cancel."""
    start = mean(directions)
    length = float(torch.linalg.vector_norm(start))
    here = start / length if length >= tolerance else directions[0]
    for _ in range(steps):
        tangent = mean([_compute_tangent(here, direction) for direction in directions])
        length = float(torch.linalg.vector_norm(tangent))
        if length < tolerance:
            break
        here = here * math.cos(length) + tangent * (math.sin(length) / length)
        here = here / torch.linalg.vector_norm(here)
    return here


def _compute_tangent(here: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    """Returns the tangent at ``here`` that leads to ``there``, as long as the angle between
    them."""
    along = max(-1.0, min(1.0, float((here * there).sum())))
    across = there - here * along
    length = float(torch.linalg.vector_norm(across))
    return across * (math.atan2(length, along) / length) if length else torch.zeros_like(here)


METHODS.register("karcher", MergeMethod(params=KarcherParams, combine=combine, neutral={}))
