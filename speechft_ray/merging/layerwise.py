"""Layer-wise merging: multiplies the mean task vector by one factor per encoder layer, and one each
for front end, positional convolution and the rest.

These are the layer-wise coefficients of AdaMerging (arXiv 2310.02575) and, for speech, of AdaLTM
(arXiv 2603.25041), chosen by a search instead of by entropy or training. The factors multiply
alpha: with alpha 1 they are the layers' own alphas.
"""

from __future__ import annotations

import re
from typing import Annotated, ClassVar

import torch
from pydantic import Field, field_validator

from speechft_ray.core.errors import UserError
from speechft_ray.core.layers import ENCODER_LAYER, layer_of
from speechft_ray.merging._layers import check_pattern, count_layers
from speechft_ray.merging.base import METHODS, AveragedParams, MergeMethod, one_per_weight
from speechft_ray.merging.linear import compute_weighted_sum
from speechft_ray.merging.param_reader import ParamReader, ParamSlice

Share = Annotated[float, Field(ge=0, le=1)]


PARTS = {
    "q": r"\.(q_proj|linear_q|query)\.",
    "k": r"\.(k_proj|linear_k|key)\.",
    "v": r"\.(v_proj|linear_v|value)\.",
    "out": r"\.(out_proj|linear_out|o_proj)\.",
    "ffn": r"\.(fc1|fc2|feed_forward|ffn\d?)\.",
    "norms": r"norm\d?\.",
}
"""Patterns of the names of a layer's parts, in fairseq, s3prl and transformers; the first that
matches counts."""


class LayerwiseParams(AveragedParams):
    """Parameters of the layer-wise merge; the defaults give ``linear``."""

    by_donor: ClassVar[tuple[str, ...]] = ("weights", "layers_by_donor")

    layers: Annotated[tuple[Share, ...], Field(min_length=1)] | Share = 1.0
    """Factor of each encoder layer, from the first to the last; or one for all."""
    layers_by_donor: Annotated[tuple[tuple[Share, ...], ...], Field(min_length=1)] | None = None
    """Factors of the encoder layers for each donor, which multiply its task vector there. With
    ``normalize: false`` they are the coefficients by task and layer of AdaMerging and AdaLTM."""
    front_end: Share = 1.0
    """Factor of the convolutions that read the waveform."""
    position: Share = 1.0
    """Factor of the positional convolution."""
    rest: Share = 1.0
    """Factor of everything else: projections and norms outside of layers."""
    q: Share = 1.0
    """Factor of the attention's query projections, which multiplies that of their layer."""
    k: Share = 1.0
    """Factor of the key projections, likewise."""
    v: Share = 1.0
    """Factor of the value projections, likewise."""
    out: Share = 1.0
    """Factor of the attention's output projections, likewise."""
    ffn: Share = 1.0
    """Factor of the feed-forward layers, likewise."""
    norms: Share = 1.0
    """Factor of the norms in layers, likewise."""
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
    """Raises ``UserError`` when the number of factors is not that of the layers, when there is no
    layer, or when a part of the layers with a factor matches no parameter."""
    names = [group.name for group in reader.groups]
    layers = count_layers(names, params.layer_pattern)
    present = {
        find_part(name) for name in names if layer_of(name, params.layer_pattern) is not None
    }
    absent = [part for part in PARTS if getattr(params, part) != 1.0 and part not in present]
    if absent:
        raise UserError(
            f"`{absent[0]}` of merge method `layerwise` matches no parameter in the layers of the "
            f"base: it looks for names with `{PARTS[absent[0]]}`. Leave it out."
        )
    lists = {"layers": params.layers} if isinstance(params.layers, tuple) else {}
    lists |= {
        f"layers_by_donor.{donor}": factors
        for donor, factors in enumerate(params.layers_by_donor or ())
    }
    for name, factors in lists.items():
        if len(factors) != layers:
            raise UserError(
                f"`{name}` of merge method `layerwise` must have {layers} factors, one for each "
                f"layer of the base, but has {len(factors)} instead."
            )


def combine(params: LayerwiseParams, precomputed: None, part: ParamSlice) -> torch.Tensor:
    """Returns the weighted mean task vector times the factor of the parameter."""
    weights = params.weights_of(len(part.vectors))
    vectors = part.vectors
    layer = layer_of(part.name, params.layer_pattern)
    if params.layers_by_donor is not None and layer is not None:
        # The factors do not enter the divisor of the mean, as `layers` does not.
        vectors = tuple(
            vector * factors[layer]
            for vector, factors in zip(vectors, params.layers_by_donor, strict=True)
        )
    mean = compute_weighted_sum(weights, vectors, params.normalize)
    return mean * compute_factor(params, part.name)


def compute_factor(params: LayerwiseParams, name: str) -> float:
    """Returns the factor of a parameter."""
    layer = layer_of(name, params.layer_pattern)
    if layer is not None:
        factor = params.layers[layer] if isinstance(params.layers, tuple) else params.layers
        part = find_part(name)
        return factor * float(getattr(params, part)) if part else factor
    if re.search(params.front_end_pattern, name):
        return params.front_end
    return params.position if re.search(params.position_pattern, name) else params.rest


def find_part(name: str) -> str | None:
    """Returns the part of its layer that a parameter belongs to; ``None`` where it is in none."""
    return next((part for part, pattern in PARTS.items() if re.search(pattern, name)), None)


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
