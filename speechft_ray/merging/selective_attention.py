"""Selective attention merging: adds a second donor in the attention alone, the less the deeper
(arXiv 2501.08468; doi 10.1016/j.csl.2026.102012).

Made for recognition of children's speech. The first donor is the anchor, which everything outside
of the attention keeps; in the query, key and value projections of layer l its task vector has the
factor share^(decay (l + 1) / L), the second donor's the rest to 1.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, field_validator

from speechft_ray.core.layers import ENCODER_LAYER, layer_of
from speechft_ray.merging._layers import check_pattern, count_layers
from speechft_ray.merging.base import METHODS, DonorRange, MergeMethod, MergeParams
from speechft_ray.merging.layerwise import find_part
from speechft_ray.merging.param_reader import ParamReader, ParamSlice

ATTENTION = ("q", "k", "v")


class SelectiveAttentionParams(MergeParams):
    """Parameters of selective attention merging."""

    share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """The paper's lambda, which it searches from 0 to 1."""
    decay: Annotated[float, Field(ge=0)] = 0.2
    """The paper's alpha: the factor of the anchor in the last layer is share^decay."""
    layer_pattern: str = ENCODER_LAYER
    """Regular expression whose group ``layer`` is the number of the layer in a parameter's name."""

    @field_validator("layer_pattern")
    @classmethod
    def _has_a_layer(cls, pattern: str) -> str:
        return check_pattern(pattern, needs_layer=True)


def donors(params: SelectiveAttentionParams) -> DonorRange:
    """Exactly two: the anchor, and what its attention adds."""
    return 2, 2


def precompute(params: SelectiveAttentionParams, reader: ParamReader) -> int:
    """Returns the number of layers."""
    return count_layers((group.name for group in reader.groups), params.layer_pattern)


def combine(params: SelectiveAttentionParams, precomputed: int, part: ParamSlice) -> torch.Tensor:
    """Returns the anchor's task vector, in the attention f times it plus 1 - f times the second
    donor's."""
    anchor, second = part.vectors
    layer = layer_of(part.name, params.layer_pattern)
    if layer is None or find_part(part.name) not in ATTENTION:
        return anchor
    factor = params.share ** (params.decay * (layer + 1) / precomputed)
    return torch.lerp(second, anchor, factor)


METHODS.register(
    "selective_attention",
    MergeMethod(
        params=SelectiveAttentionParams,
        combine=combine,
        precompute=precompute,
        blockwise=True,
        donors=donors,
        symmetric=False,
    ),
)
