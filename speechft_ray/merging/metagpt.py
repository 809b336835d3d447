"""MetaGPT: weights each task vector by its squared length (arXiv 2406.11385).

The closed form minimises an upper bound of the mean loss over the tasks, for losses that are linear
around the base and task vectors that are orthogonal; it needs no data.
"""

from __future__ import annotations

import torch

from speechft_ray.merging.base import METHODS, MergeMethod, MergeParams
from speechft_ray.merging.linear import compute_weighted_sum
from speechft_ray.merging.param_reader import ParamReader, ParamSlice


class MetagptParams(MergeParams):
    """MetaGPT has no parameter of its own."""


def precompute(params: MetagptParams, reader: ParamReader) -> tuple[float, ...]:
    """Returns each donor's share of the squared lengths of all task vectors, over the whole
    model."""
    if "squares" not in reader.cache:
        squares = [0.0] * reader.donors
        for block in reader.blocks():
            for donor, vector in enumerate(block.vectors):
                squares[donor] += float(vector.double().square().sum())
        reader.cache["squares"] = squares
    squares = reader.cache["squares"]
    total = sum(squares)
    return tuple(square / total if total else 1.0 / len(squares) for square in squares)


def combine(
    params: MetagptParams, precomputed: tuple[float, ...], part: ParamSlice
) -> torch.Tensor:
    """Returns sum_i |vector_i|^2 vector_i / sum_j |vector_j|^2."""
    return compute_weighted_sum(precomputed, part.vectors, normalize=False)


METHODS.register(
    "metagpt",
    MergeMethod(
        params=MetagptParams, combine=combine, precompute=precompute, blockwise=True, neutral={}
    ),
)
