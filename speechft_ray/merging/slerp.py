"""Spherical interpolation between two donors (Shoemake 1985, doi 10.1145/325165.325242), tensor by
tensor.

mergekit interpolates between the *weights*. After fine-tuning their angle is almost 0, so on a
HuBERT most tensors fall back to a straight line. The default here interpolates between the *task
vectors*, whose angles are wide.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field

from speechft_ray.merging._sphere import On, cosine, to_points, to_vector
from speechft_ray.merging.base import METHODS, DonorRange, MergeMethod, MergeParams
from speechft_ray.merging.param_reader import ParamSlice


class SlerpParams(MergeParams):
    """Parameters of spherical interpolation."""

    t: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the second donor: 0 is the first, 1 the second."""
    on: On = "vectors"
    """What is interpolated: the ``vectors`` theta_i - theta0 (mergekit's ``nuslerp`` with a base),
    or the ``weights`` theta_i (its ``slerp``)."""
    lerp_above: Annotated[float, Field(gt=0, le=1)] = 0.9995
    """Absolute cosine above which the interpolation is linear instead (mergekit's ``slerp``; its
    ``nuslerp``: almost 1)."""
    along: Literal["tensor", "last", "first"] = "tensor"
    """What has an angle of its own: the whole ``tensor``, or each slice along its ``last`` axis
    (mergekit's ``nuslerp_flatten: false``) or its ``first`` one (with ``nuslerp_row_wise``)."""


def donors(params: SlerpParams) -> DonorRange:
    """Exactly two."""
    return 2, 2


def combine(params: SlerpParams, precomputed: None, part: ParamSlice) -> torch.Tensor:
    """Returns sin((1 - t) a) / sin(a) * first + sin(t a) / sin(a) * second, with a the angle
    between the two."""
    first, second = to_points(params.on, part)
    if params.along != "tensor":
        return to_vector(params.on, _interpolate_slices(params, first, second), part)
    shared = cosine(first, second)
    if abs(shared) > params.lerp_above or abs(shared) == 1.0:
        return to_vector(params.on, torch.lerp(first, second, params.t), part)
    angle = math.acos(shared)
    shares = [math.sin(share * angle) / math.sin(angle) for share in (1 - params.t, params.t)]
    return to_vector(params.on, first * shares[0] + second * shares[1], part)


def _interpolate_slices(
    params: SlerpParams, first: torch.Tensor, second: torch.Tensor
) -> torch.Tensor:
    axis = -1 if params.along == "last" else 0
    lengths = [torch.linalg.vector_norm(each, dim=axis, keepdim=True) for each in (first, second)]
    tiny = torch.finfo(first.dtype).tiny
    shared = (first * second).sum(dim=axis, keepdim=True) / (lengths[0] * lengths[1]).clamp_min(
        tiny
    )
    straight = (shared.abs() > params.lerp_above) | (shared.abs() >= 1.0)
    angle = torch.acos(shared.masked_fill(straight, 0.0))
    shares = [
        torch.where(straight, share, torch.sin(share * angle) / torch.sin(angle))
        for share in (1 - params.t, params.t)
    ]
    return first * shares[0] + second * shares[1]


METHODS.register("slerp", MergeMethod(params=SlerpParams, combine=combine, donors=donors))
