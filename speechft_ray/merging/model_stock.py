"""Model stock: pulls the mean of the donors towards the base the more they disagree, tensor by
tensor (arXiv 2403.19522)."""

from __future__ import annotations

from itertools import combinations

import torch

from speechft_ray.merging._sphere import cosine, mean
from speechft_ray.merging.base import METHODS, DonorRange, MergeMethod, MergeParams
from speechft_ray.merging.param_reader import ParamSlice


class ModelStockParams(MergeParams):
    """Model stock has no parameter of its own."""


def donors(params: ModelStockParams) -> DonorRange:
    """Two or more, since it measures the angle between donors."""
    return 2, None


def combine(params: ModelStockParams, precomputed: None, part: ParamSlice) -> torch.Tensor:
    """Returns t times the mean task vector, with t = n c / (1 + (n - 1) c) and c the mean cosine of
    all pairs.

    As in the paper, t is not clipped to [0, 1]: donors in opposite directions (c < 0) give a step
    back. Where they cancel, so that the denominator is 0, t is 0.
    """
    count = len(part.vectors)
    pairs = [
        cosine(first, second)
        for first, second in combinations([vector.double() for vector in part.vectors], 2)
    ]
    shared = sum(pairs) / len(pairs)
    below = 1 + (count - 1) * shared
    return mean(part.vectors) * (count * shared / below if below > 1e-9 else 0.0)


METHODS.register(
    "model_stock", MergeMethod(params=ModelStockParams, combine=combine, donors=donors)
)
