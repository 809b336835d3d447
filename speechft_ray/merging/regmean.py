"""RegMean: solves for the linear layers whose outputs are nearest to those of all donors on their
own data (arXiv 2212.09849).

The donors' fine-tuning gathers the inner products of a layer's inputs, X^T X over the number of
rows, with ``gather: [gram]``. Only the weights of linear layers have them; all other parameters are
averaged.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field

from speechft_ray.merging._sphere import mean
from speechft_ray.merging.base import METHODS, MergeMethod, MergeParams
from speechft_ray.merging.param_reader import ParamSlice

RIDGE = 1e-6
"""Ridge towards the plain mean, as a share of the mean squared input. It determines the columns of
inputs that are 0 for all donors, for which the paper's equation has no solution, and changes other
columns by little more than float32 resolves."""


class RegmeanParams(MergeParams):
    """Parameters of RegMean."""

    off_diagonal: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Factor of the inner products of different inputs (the paper's alpha, 0.9 for most of its
    models; MergeLM: 1)."""


def combine(params: RegmeanParams, precomputed: None, part: ParamSlice) -> torch.Tensor:
    """Returns (sum_i vector_i G_i) (sum_i G_i)^-1, which is the paper's closed form with theta0
    subtracted from both sides."""
    if len(part.vectors) == 1:
        return part.vectors[0]
    if not part.statistics:
        return mean(part.vectors)
    grams = [_damp(gram.double(), params.off_diagonal) for gram in part.statistics]
    vectors = [vector.double() for vector in part.vectors]
    left = torch.stack(grams).sum(dim=0)
    right = torch.stack([vector @ gram for vector, gram in zip(vectors, grams, strict=True)]).sum(
        dim=0
    )
    ridge = RIDGE * left.diagonal().mean()
    if ridge == 0:
        return mean(part.vectors)
    left.diagonal().add_(ridge)
    right.add_(mean(vectors) * ridge)
    merged: torch.Tensor = torch.linalg.solve(left, right, left=False)
    return merged.to(part.base.dtype)


def _damp(gram: torch.Tensor, off_diagonal: float) -> torch.Tensor:
    return gram * off_diagonal + torch.diag(gram.diagonal() * (1.0 - off_diagonal))


METHODS.register(
    "regmean", MergeMethod(params=RegmeanParams, combine=combine, needs="gram", neutral={})
)
