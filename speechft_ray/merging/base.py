"""What a merge method is to the rest of the house, and where methods register."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from speechft_ray.core.errors import UserError
from speechft_ray.core.registry import Registry
from speechft_ray.core.validation import validate
from speechft_ray.merging.alignment import PosConv
from speechft_ray.merging.param_reader import ParamReader, ParamSlice

DonorRange = tuple[int, int | None]
"""Fewest and most donors; ``None``: any number."""


def any_number(params: Any) -> DonorRange:
    """The donor range of a method that takes one donor or more."""
    return 1, None


def never(params: Any) -> bool:
    """For methods that need a parameter whole."""
    return False


def always(params: Any) -> bool:
    """For methods that look at each position by itself."""
    return True


class MergeParams(BaseModel):
    """Base of all parameter models: frozen, no unknown field, finite numbers. Its own fields hold
    for every method."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    scale: float = 1.0
    """Factor of the combined task vector: lambda of task arithmetic and TIES. Applied last, so that
    scans of it are cheap."""
    precision: Literal["float32", "float64"] = "float32"
    """Number type of the arithmetic; a float64 base is always merged in float64."""
    pos_conv: PosConv = "factors"
    """How a weight-normalised convolution is merged: its ``factors`` g and v each by itself, as
    published code does, or its effective ``kernel`` g * v / |v|."""

    @property
    def dtype(self) -> torch.dtype:
        """The torch type of ``precision``."""
        return torch.float64 if self.precision == "float64" else torch.float32


class WeightedParams(MergeParams):
    """Parameters of a method that weighs its donors."""

    weights: Annotated[tuple[float, ...], Field(min_length=1)] | None = None
    """One weight per donor, in the order of the donors; ``None``: 1 each."""

    def weights_of(self, donors: int) -> tuple[float, ...]:
        """The weight of each donor."""
        return self.weights or (1.0,) * donors


class AveragedParams(WeightedParams):
    """Parameters of a method that makes a weighted sum or mean of its donors."""

    normalize: bool = True
    """Whether the weighted sum is divided by the sum of the weights in it."""

    @model_validator(mode="after")
    def _sum_divides(self) -> AveragedParams:
        if self.normalize and self.weights is not None and math.fsum(self.weights) == 0:
            raise ValueError(
                "`weights` sum to 0, so their sum cannot divide; change them or set `normalize: false`"
            )
        return self


def one_per_weight(params: WeightedParams) -> DonorRange:
    """As many donors as there are weights; any number without weights."""
    return (1, None) if params.weights is None else (len(params.weights), len(params.weights))


@dataclass(frozen=True, kw_only=True)
class MergeMethod:
    """A registered way to combine task vectors into one, tensor by tensor.

    ``params``: the model of its parameters, each with a default. ``combine(params, surveyed, one)``
    returns the combined task vector of one part, in the shape and type of ``one.base``, and changes
    nothing that it was given; it may return one of ``one.vectors`` itself. A lone task vector that
    it returns bit for bit makes the end point alpha = 1 exact (``algebra.merge``). It does not
    apply ``scale``. ``survey(params, source)``: what must be known of the whole model before,
    handed to every ``combine``. ``blockwise(params)``: whether each position of the result depends
    on that position of the task vectors and on the survey alone; ``combine`` is then called with
    blocks of a part, which is up to ten times as fast. ``donors(params)``: how many donors these
    parameters can take. ``needs``: the statistics of the donors' tuning sets that it reads.
    ``neutral``: parameters at which a lone donor comes back bit for bit; ``None`` where no
    parameters do. ``symmetric``: whether the order of equally treated donors does not matter.
    """

    params: type[MergeParams]
    combine: Callable[[Any, Any, ParamSlice], torch.Tensor]
    precompute: Callable[[Any, ParamReader], Any] | None = None
    blockwise: Callable[[Any], bool] = never
    donors: Callable[[Any], DonorRange] = any_number
    needs: Literal["fisher", "gram"] | None = None
    neutral: Mapping[str, Any] | None = None
    symmetric: bool = True


METHODS: Registry[MergeMethod] = Registry("merge method", "speechft_ray.merging")


def validate_params(
    method: str, params: Mapping[str, Any], donors: int | None = None
) -> MergeParams:
    """Returns the validated parameters, before anything is computed.

    Raises ``UserError`` for an unknown method, ``SpecError`` with every mistake in the parameters,
    and ``UserError`` when the method with these parameters cannot take so many donors (not checked
    when ``donors`` is ``None``).
    """
    found = METHODS.get(method)
    checked = validate(found.params, dict(params), f"merge method `{method}`")
    fewest, most = found.donors(checked)
    if donors is None or (fewest <= donors and (most is None or donors <= most)):
        return checked
    wanted = (
        f"at least {fewest}"
        if most is None
        else f"{fewest}"
        if most == fewest
        else f"{fewest} to {most}"
    )
    raise UserError(
        f"the number of donors must be {wanted} for merge method `{method}` with parameters {dict(params)}, but is {donors} "
        "instead: change the donors or the parameters."
    )
