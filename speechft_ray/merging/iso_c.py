"""Iso-C: makes all singular values of the summed task vectors equal (arXiv 2502.04959).

Only matrices have singular values. All other tensors, convolutions among them, are averaged, as in
the authors' code (github.com/danielm1405/iso-merging).
"""

from __future__ import annotations

import torch

from speechft_ray.merging._sphere import mean
from speechft_ray.merging.base import METHODS, MergeMethod, MergeParams
from speechft_ray.merging.param_reader import ParamSlice


class IsoCParams(MergeParams):
    """Iso-C has no parameter of its own; the paper's alpha is ``scale``."""


def combine(params: IsoCParams, precomputed: None, part: ParamSlice) -> torch.Tensor:
    """Returns s U V with U, V the singular vectors of the summed task vectors and s the mean of the
    singular values.

    It changes even a lone donor. Where the sum is rank-deficient, its null directions get the
    singular value s as well, and the SVD chooses them arbitrarily.
    """
    if part.base.dim() != 2:
        return mean(part.vectors)
    total = part.vectors[0].clone()
    for vector in part.vectors[1:]:
        total.add_(vector)
    left, values, right = torch.linalg.svd(total, full_matrices=False)
    return left @ right * values.mean() if total.numel() else total


METHODS.register("iso_c", MergeMethod(params=IsoCParams, combine=combine))
