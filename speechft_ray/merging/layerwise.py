"""Layer-wise merging: multiplies the mean task vector by one factor per encoder layer, and one each
for front end, positional convolution and the rest.

These are the layer-wise coefficients of AdaMerging (arXiv 2310.02575), chosen by a search instead
of by entropy. The factors multiply alpha: with alpha 1 they are the layers' own alphas.
"""

from __future__ import annotations

import re
from typing import Annotated

import torch
from pydantic import Field, field_validator

from speechft_ray.core.errors import UserError
from speechft_ray.core.layers import ENCODER_LAYER, layer_of
from speechft_ray.merging._layers import check_pattern, count_layers
from speechft_ray.merging.base import METHODS, AveragedParams, MergeMethod, one_per_weight
from speechft_ray.merging.linear import compute_weighted_sum
from speechft_ray.merging.param_reader import ParamReader, ParamSlice

Share = Annotated[float, Field(ge=0, le=1)]


class LayerwiseParams(AveragedParams):
    """Parameters of the layer-wise merge; the defaults give ``linear``."""

    layers: Annotated[tuple[Share, ...], Field(min_length=1)] | Share = 1.0
    """Factor of each encoder layer, from the first to the last; or one for all."""
    front_end: Share = 1.0
    """Factor of the convolutions that read the waveform."""
    position: Share = 1.0
    """Factor of the positional convolution."""
    rest: Share = 1.0
    """Factor of everything else: projections and norms outside of layers."""
    layer_pattern: str = ENCODER_LAYER
    """Regular expression whose group ``layer`` is the number of the layer in a parameter's name."""
    front_end_pattern: str = r"(^|\.)feature_extractor\."
    """Regular expression of the names of the front end's parameters; ``layer_pattern`` is matched
    first."""
    position_pattern: str = r"(^|\.)pos_conv"
    """Regular expression of the names of the positional convolution's parameters; the other two
    patterns are matched first."""

    @field_validator("layer_pattern")
    @classmethod
    def _has_a_layer(cls, pattern: str) -> str:
        return check_pattern(pattern, needs_layer=True)

    @field_validator("front_end_pattern", "position_pattern")
    @classmethod
    def _is_a_pattern(cls, pattern: str) -> str:
        return check_pattern(pattern)


def precompute(params: LayerwiseParams, reader: ParamReader) -> None:
    """Raises ``UserError`` when the number of factors is not that of the layers, or when there is
    no layer."""
    layers = count_layers((group.name for group in reader.groups), params.layer_pattern)
    if isinstance(params.layers, tuple) and len(params.layers) != layers:
        raise UserError(
            f"`layers` of merge method `layerwise` must have {layers} factors, one for each layer "
            f"of the base, but has {len(params.layers)} instead."
        )


def combine(params: LayerwiseParams, precomputed: None, part: ParamSlice) -> torch.Tensor:
    """Returns the weighted mean task vector times the factor of the parameter."""
    weights = params.weights_of(len(part.vectors))
    mean = compute_weighted_sum(weights, part.vectors, params.normalize)
    return mean * compute_factor(params, part.name)


def compute_factor(params: LayerwiseParams, name: str) -> float:
    """Returns the factor of a parameter."""
    layer = layer_of(name, params.layer_pattern)
    if layer is not None:
        return params.layers[layer] if isinstance(params.layers, tuple) else params.layers
    if re.search(params.front_end_pattern, name):
        return params.front_end
    return params.position if re.search(params.position_pattern, name) else params.rest


METHODS.register(
    "layerwise",
    MergeMethod(
        params=LayerwiseParams,
        combine=combine,
        precompute=precompute,
        blockwise=True,
        donors=one_per_weight,
        neutral={},
    ),
)
