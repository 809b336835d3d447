"""KnOTS: merges donors by TIES in a basis that they share (arXiv 2410.19735).

The task vectors of a matrix, side by side, are decomposed as U S [V_1 ... V_n]; TIES merges the
S V_i, and U turns the result back. Made for LoRA donors, whose task vectors lie in few directions
that differ between donors. As in the authors' code (github.com/gstoica27/KnOTS) the trim has one
threshold for the whole model. Tensors that are no matrices, convolutions among them, are merged by
the same TIES as they are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch

from speechft_ray.merging import ties
from speechft_ray.merging.base import METHODS, AveragedParams, MergeMethod, Shares, one_per_weight
from speechft_ray.merging.param_reader import ParamReader, ParamSlice

NEGLIGIBLE = 1e-5
"""Singular values below this share of the largest count as 0 (the authors' code: 1e-5, bare)."""


class KnotsParams(AveragedParams):
    """Parameters of KnOTS."""

    by_donor: ClassVar[tuple[str, ...]] = ("weights", "density")

    density: Shares = 0.2
    """Share of the coordinates in the common basis that the trim of TIES keeps (the authors'
    configuration); 1 keeps all. One for all donors, or one for each."""

    def to_ties_params(self) -> ties.TiesParams:
        """Returns the parameters of the TIES merge."""
        return ties.TiesParams(density=self.density, weights=self.weights, normalize=self.normalize)


def precompute(params: KnotsParams, reader: ParamReader) -> ties.TiesGlobals:
    """Precomputes TIES on the coordinates; decomposes every matrix once per pass over the model."""
    aligned = ParamReader(
        groups=reader.groups,
        donors=reader.donors,
        read=lambda group: align(reader.read(group))[1],
    )
    return ties.precompute(params.to_ties_params(), aligned)


def combine(params: KnotsParams, precomputed: ties.TiesGlobals, part: ParamSlice) -> torch.Tensor:
    """Returns the TIES merge of the coordinates, turned back."""
    if len(part.vectors) == 1 and params.density == 1.0:
        return part.vectors[0]
    basis, coordinates = align(part)
    merged = ties.combine(params.to_ties_params(), precomputed, coordinates)
    return merged if basis is None else basis @ merged


def align(part: ParamSlice) -> tuple[torch.Tensor | None, ParamSlice]:
    """Returns an orthogonal basis of the donors' output directions, and the group in its
    coordinates; ``None`` and the group itself where it is no matrix.

    The basis are the eigenvectors of sum_i vector_i vector_i^T, which are the left singular vectors
    of the vectors side by side.
    """
    if part.base.dim() != 2:
        return None, part
    wide = [vector.double() for vector in part.vectors]
    values, directions = torch.linalg.eigh(torch.stack([each @ each.T for each in wide]).sum(dim=0))
    lengths = values.clamp_min(0.0).sqrt()
    basis = directions[:, lengths > NEGLIGIBLE * lengths.max()] if lengths.numel() else directions
    coordinates = tuple((basis.T @ each).to(part.base.dtype) for each in wide)
    return basis.to(part.base.dtype), replace(
        part,
        base=part.base.new_zeros((basis.shape[1], part.base.shape[1])),
        vectors=coordinates,
    )


METHODS.register(
    "knots",
    MergeMethod(
        params=KnotsParams,
        combine=combine,
        precompute=precompute,
        donors=one_per_weight,
        neutral={"density": 1.0},
    ),
)
