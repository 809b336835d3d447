"""LiNeS: scales the task vector by a factor that rises linearly with depth (arXiv 2410.17146).

The authors' code (github.com/wang-kee/LiNeS) takes the first number in a name for the block. On a
HuBERT that makes blocks of the front end's convolutions, so here ``layer_pattern`` finds the layer.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field, field_validator

from speechft_ray.core.layers import ENCODER_LAYER, layer_of
from speechft_ray.merging import ties
from speechft_ray.merging._layers import check_pattern, count_layers
from speechft_ray.merging.base import METHODS, MergeMethod, MergeParams
from speechft_ray.merging.linear import compute_weighted_sum
from speechft_ray.merging.param_reader import ParamReader, ParamSlice


class LinesParams(MergeParams):
    """Parameters of LiNeS."""

    slope: Annotated[float, Field(ge=0)] = 0.5
    """Factor of the last layer minus that of the first: the paper's beta, which it searches."""
    shallow: Annotated[float, Field(ge=0)] | None = None
    """Factor of the first layer and of all parameters in no layer: the paper's alpha. ``None``: the
    paper's own choice, which is 1 - ``slope`` for one donor; for several, the L1 norm of the summed
    task vectors over that of the merged one, over the number of donors."""
    merged: Literal["sum", "ties"] = "sum"
    """What is scaled: the sum of the task vectors, or the TIES merge with the defaults of ``ties``
    and ``density``."""
    density: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Density of the trim, for ``merged: ties``."""
    layer_pattern: str = ENCODER_LAYER
    """Regular expression whose group ``layer`` is the number of the layer in a parameter's name."""

    @field_validator("layer_pattern")
    @classmethod
    def _has_a_layer(cls, pattern: str) -> str:
        return check_pattern(pattern, needs_layer=True)


class LinesGlobals(NamedTuple):
    """Precomputed values of LiNeS."""

    layers: int
    shallow: float
    ties: ties.TiesGlobals | None


def precompute(params: LinesParams, reader: ParamReader) -> LinesGlobals:
    """Counts the layers, and computes the norms where they determine the factor ``shallow``."""
    layers = count_layers((group.name for group in reader.groups), params.layer_pattern)
    ties_globals = (
        ties.precompute(_make_ties_params(params), reader) if params.merged == "ties" else None
    )
    if params.shallow is not None:
        return LinesGlobals(layers, params.shallow, ties_globals)
    if reader.donors == 1:
        return LinesGlobals(layers, max(0.0, 1.0 - params.slope), ties_globals)
    summed = merged = 0.0
    for part in reader.blocks():
        summed += float(_sum_vectors(part).abs().sum(dtype=torch.float64))
        merged += float(_combine(params, ties_globals, part).abs().sum(dtype=torch.float64))
    return LinesGlobals(layers, summed / merged / reader.donors if merged else 0.0, ties_globals)


def combine(params: LinesParams, precomputed: LinesGlobals, part: ParamSlice) -> torch.Tensor:
    """Returns the merged task vector times shallow + slope * l / (L - 1), with l the layer from
    0 and L the number of layers."""
    layer = layer_of(part.name, params.layer_pattern)
    depth = layer / (precomputed.layers - 1) if layer else 0.0
    return _combine(params, precomputed.ties, part) * (precomputed.shallow + params.slope * depth)


def _combine(
    params: LinesParams, ties_globals: ties.TiesGlobals | None, part: ParamSlice
) -> torch.Tensor:
    return (
        _sum_vectors(part)
        if ties_globals is None
        else ties.combine(_make_ties_params(params), ties_globals, part)
    )


def _sum_vectors(part: ParamSlice) -> torch.Tensor:
    return compute_weighted_sum((1.0,) * len(part.vectors), part.vectors, normalize=False)


def _make_ties_params(params: LinesParams) -> ties.TiesParams:
    return ties.TiesParams(density=params.density)


METHODS.register(
    "lines",
    MergeMethod(
        params=LinesParams,
        combine=combine,
        precompute=precompute,
        blockwise=True,
        neutral={"slope": 0.0},
    ),
)
