"""Iso-CTS: Iso-C with directions of each task beside the common ones (arXiv 2502.04959).

As in the authors' code (github.com/danielm1405/iso-merging), only matrices have directions; all
other tensors, convolutions among them, are averaged.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field

from speechft_ray.merging._sphere import mean
from speechft_ray.merging.base import METHODS, MergeMethod, MergeParams
from speechft_ray.merging.param_reader import ParamSlice
from speechft_ray.merging.tsv_m import orthogonalize


class IsoCtsParams(MergeParams):
    """Parameters of Iso-CTS; the paper's alpha is ``scale``."""

    common: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Share of the rank that the strongest directions of the summed task vectors take (the paper's
    k / r). The rest is divided evenly among the donors, so it is rounded."""


def combine(params: IsoCtsParams, precomputed: None, part: ParamSlice) -> torch.Tensor:
    """Returns s U V, with s the mean of all kept singular values, and U, V the directions made
    orthogonal: for each donor the strongest ones of what the common ones leave of it, then the
    common ones.

    It changes even a lone donor. A donor whose task vector is 0 adds no direction.
    """
    if part.base.dim() != 2:
        return mean(part.vectors)
    vectors = [vector for vector in part.vectors if bool(vector.any())]
    if not vectors:
        return torch.zeros_like(part.base)
    rank = min(part.base.shape)
    own = min(round((rank - int(rank * params.common)) / len(vectors)), rank // len(vectors))
    common = rank - own * len(vectors)
    total = torch.stack(vectors).sum(dim=0)
    shared = _decompose(total, common)
    basis = shared[0]
    triples = [_decompose(vector - basis @ (basis.T @ vector), own) for vector in vectors]
    left, values, right = (torch.cat(each, dim=-1) for each in zip(*triples, shared, strict=True))
    return orthogonalize(left) @ orthogonalize(right).T * values.mean()


def _decompose(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left[:, :rank], values[:rank], right[:rank].T


METHODS.register("iso_cts", MergeMethod(params=IsoCtsParams, combine=combine))
