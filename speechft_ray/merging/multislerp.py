"""Multi-SLERP: a weighted mean of any number of donors on the sphere, in one step
(goddard.blog/posts/multislerp-wow-what-a-cool-idea).

The directions are projected onto the tangent space at their weighted mean, averaged there, and
projected back; the length is the weighted mean length. ``karcher`` iterates this step for equal
weights.
"""

from __future__ import annotations

import math

import torch

from speechft_ray.merging._sphere import On, to_points, to_vector
from speechft_ray.merging.base import METHODS, AveragedParams, MergeMethod, one_per_weight
from speechft_ray.merging.linear import compute_weighted_sum
from speechft_ray.merging.param_reader import ParamSlice

CANCELLED = 1e-8
"""Length of the mean direction below which there is no tangent space (mergekit)."""


class MultislerpParams(AveragedParams):
    """Parameters of Multi-SLERP."""

    on: On = "vectors"
    """What is averaged: the ``vectors`` theta_i - theta0 (mergekit with a base), or the ``weights``
    theta_i (without)."""


def combine(params: MultislerpParams, precomputed: None, part: ParamSlice) -> torch.Tensor:
    """Returns the mean length times exp_m(sum_i w_i log(u_i)), with m the direction of
    sum_i w_i u_i.

    Where the directions cancel, it is the weighted sum of the tensors.
    """
    if len(part.vectors) == 1:
        return part.vectors[0]
    points = to_points(params.on, part)
    weights = params.weights_of(len(points))
    lengths = [float(torch.linalg.vector_norm(point)) for point in points]
    directions = [point / (length or 1.0) for point, length in zip(points, lengths, strict=True)]
    here = compute_weighted_sum(weights, directions, params.normalize)
    length = float(torch.linalg.vector_norm(here))
    if length < CANCELLED:
        return to_vector(params.on, compute_weighted_sum(weights, points, params.normalize), part)
    here = here / length
    tangents = [direction - here * float((here * direction).sum()) for direction in directions]
    tangent = compute_weighted_sum(weights, tangents, params.normalize)
    angle = float(torch.linalg.vector_norm(tangent))
    turned = here * math.cos(angle) + (tangent * (math.sin(angle) / angle) if angle else tangent)
    divisor = math.fsum(weights) if params.normalize else 1.0
    mean_length = math.fsum(
        weight * length for weight, length in zip(weights, lengths, strict=True)
    )
    return to_vector(params.on, turned * (mean_length / divisor), part)


METHODS.register(
    "multislerp",
    MergeMethod(params=MultislerpParams, combine=combine, donors=one_per_weight, neutral={}),
)
