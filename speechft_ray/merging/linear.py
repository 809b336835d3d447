"""Linear merging: a weighted sum of task vectors, by default their mean (Speech-FT, arXiv
2502.12672, Eq. 3).

For one donor it is the weight interpolation of WiSE-FT (arXiv 2109.01903), for several the uniform
model soup (arXiv 2203.05482).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from speechft_ray.merging.base import METHODS, AveragedParams, MergeMethod, one_per_weight
from speechft_ray.merging.param_reader import ParamSlice


class LinearParams(AveragedParams):
    """Parameters of the linear merge; the defaults give the paper's mean. A negative weight negates
    a task vector."""


def combine(params: AveragedParams, precomputed: None, part: ParamSlice) -> torch.Tensor:
    """Returns sum(w_i * vector_i), divided by sum(w_i) if ``normalize``."""
    return compute_weighted_sum(
        params.weights_of(len(part.vectors)), part.vectors, params.normalize
    )


def compute_weighted_sum(
    weights: Sequence[float], vectors: Sequence[torch.Tensor], normalize: bool
) -> torch.Tensor:
    """Returns the weighted sum or mean, added in donor order.

    The factors w_i / sum(w_i) are formed first, so a lone donor gets exactly 1 and keeps its task
    vector bit for bit.
    """
    divisor = math.fsum(weights) if normalize else 1.0
    total = vectors[0] * (weights[0] / divisor)
    for weight, vector in zip(weights[1:], vectors[1:], strict=True):
        total.add_(vector, alpha=weight / divisor)
    return total


METHODS.register(
    "linear",
    MergeMethod(
        params=LinearParams, combine=combine, blockwise=True, donors=one_per_weight, neutral={}
    ),
)
