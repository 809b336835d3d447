"""LiNeS: shallow layers keep less of the task vector than deep ones, on a straight line over depth
(arXiv 2410.17146).

The authors' code (github.com/wang-kee/LiNeS) takes the first number in a name for the block, which
on a HuBERT makes blocks of the front end's convolutions; here ``layer_pattern`` says what a layer
is.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field, field_validator

from speechft_ray.merging import ties
from speechft_ray.merging._layers import ENCODER_LAYER, check_pattern, count_layers, layer_of
from speechft_ray.merging.base import METHODS, MergeMethod, MergeParams, always
from speechft_ray.merging.linear import weighted_sum
from speechft_ray.merging.param_reader import One, Source


class LinesParams(MergeParams):
    """Parameters of LiNeS."""

    slope: Annotated[float, Field(ge=0)] = 0.5
    """How much larger the factor of the last layer is than that of the first: the paper's beta,
    which it searches."""
    shallow: Annotated[float, Field(ge=0)] | None = None
    """Factor of the first layer and of all that is in no layer: the paper's alpha. ``None``: the
    paper's own choice, 1 - ``slope`` for one donor; for several the L1 norm of the summed task
    vectors over that of the merged one and their number."""
    merged: Literal["sum", "ties"] = "sum"
    """What is scaled: the sum of the task vectors, or the TIES merge with the defaults of ``ties``
    and ``density``."""
    density: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Density of the trim, for ``merged: ties``."""
    layer_pattern: str = ENCODER_LAYER
    """Regular expression that finds the group ``layer``, the number of the layer, in the name of a
    parameter."""

    @field_validator("layer_pattern")
    @classmethod
    def _has_a_layer(cls, given: str) -> str:
        return check_pattern(given, needs_layer=True)


class LinesSurvey(NamedTuple):
    """What LiNeS must know of the whole model."""

    layers: int
    shallow: float
    ties: ties.TiesSurvey | None


def survey(params: LinesParams, source: Source) -> LinesSurvey:
    """Counts the layers and measures the norms, where they set the factor."""
    layers = count_layers((part.name for part in source.parts), params.layer_pattern)
    elected = ties.survey(_ties(params), source) if params.merged == "ties" else None
    if params.shallow is not None:
        return LinesSurvey(layers, params.shallow, elected)
    if source.donors == 1:
        return LinesSurvey(layers, max(0.0, 1.0 - params.slope), elected)
    summed = merged = 0.0
    for one in source.blocks():
        summed += float(_sum(one).abs().sum(dtype=torch.float64))
        merged += float(_merged(params, elected, one).abs().sum(dtype=torch.float64))
    return LinesSurvey(layers, summed / merged / source.donors if merged else 0.0, elected)


def combine(params: LinesParams, surveyed: LinesSurvey, one: One) -> torch.Tensor:
    """Returns the merged task vector times shallow + slope * l / (L - 1), with l the layer from 0
    and L their number."""
    layer = layer_of(one.name, params.layer_pattern)
    depth = layer / (surveyed.layers - 1) if layer else 0.0
    return _merged(params, surveyed.ties, one) * (surveyed.shallow + params.slope * depth)


def _merged(params: LinesParams, elected: ties.TiesSurvey | None, one: One) -> torch.Tensor:
    return _sum(one) if elected is None else ties.combine(_ties(params), elected, one)


def _sum(one: One) -> torch.Tensor:
    return weighted_sum((1.0,) * len(one.vectors), one.vectors, normalize=False)


def _ties(params: LinesParams) -> ties.TiesParams:
    return ties.TiesParams(density=params.density)


METHODS.register(
    "lines",
    MergeMethod(
        params=LinesParams, combine=combine, survey=survey, blockwise=always, neutral={"slope": 0.0}
    ),
)
