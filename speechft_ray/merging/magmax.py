"""MagMax: takes at each position the change of largest magnitude (arXiv 2407.06322).

The authors' code (github.com/danielm1405/magmax) multiplies the result by 0.5 for independent
fine-tunings; here that is ``scale``.
"""

from __future__ import annotations

import torch

from speechft_ray.merging.base import METHODS, MergeMethod, MergeParams
from speechft_ray.merging.param_reader import ParamSlice


class MagmaxParams(MergeParams):
    """MagMax has no parameter of its own."""


def combine(params: MagmaxParams, precomputed: None, part: ParamSlice) -> torch.Tensor:
    """Returns the value of largest magnitude at each position; of equal ones the last donor's, as
    in the authors' code."""
    largest = part.vectors[0]
    for vector in part.vectors[1:]:
        largest = torch.where(vector.abs() >= largest.abs(), vector, largest)
    return largest


METHODS.register(
    "magmax", MergeMethod(params=MagmaxParams, combine=combine, blockwise=True, neutral={})
)
