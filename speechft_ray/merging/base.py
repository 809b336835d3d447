"""The interface of merge methods, the base classes of their parameters, and their registry."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from speechft_ray.core.errors import UserError
from speechft_ray.core.registry import Registry
from speechft_ray.core.validation import validate
from speechft_ray.merging.alignment import PosConv
from speechft_ray.merging.param_reader import ParamReader, ParamSlice

DonorRange = tuple[int, int | None]
"""Smallest and largest number of donors; ``None``: no upper limit."""


def any_number(params: Any) -> DonorRange:
    """The donor range of a method that takes one donor or more."""
    return 1, None


Share = Annotated[float, Field(gt=0, le=1)]
Shares = Share | Annotated[tuple[Share, ...], Field(min_length=1)]
"""One share for all donors, or one for each."""


def spread(value: float | tuple[float, ...], donors: int) -> tuple[float, ...]:
    """Returns one value per donor: the values themselves, or a single one for all."""
    return value if isinstance(value, tuple) else (value,) * donors


class MergeParams(BaseModel):
    """Base of all parameter models: frozen, no unknown field, finite numbers.

    Every method has these fields.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    scale: float = 1.0
    """Factor of the combined task vector: lambda of task arithmetic and TIES. It is applied last,
    so scans of it are cheap."""
    precision: Literal["float32", "float64"] = "float32"
    """Dtype of the arithmetic; a float64 base is always merged in float64."""
    pos_conv: PosConv = "factors"
    """How a weight-normalised convolution is merged: its ``factors`` g and v separately, as
    published code does, or its effective ``kernel`` g * v / |v|."""

    conventions: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """What each value of ``like``, the name of a program, sets where the parameters do not."""

    @model_validator(mode="before")
    @classmethod
    def _apply_conventions(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        return {**cls.conventions.get(str(raw.get("like")), {}), **raw}

    @property
    def dtype(self) -> torch.dtype:
        """The torch dtype of ``precision``."""
        return torch.float64 if self.precision == "float64" else torch.float32


class WeightedParams(MergeParams):
    """Parameters of a method that weights its donors."""

    by_donor: ClassVar[tuple[str, ...]] = ("weights",)
    """Fields that may hold one value per donor."""

    weights: Annotated[tuple[float, ...], Field(min_length=1)] | None = None
    """One weight per donor, in the order of the donors; ``None``: 1 each."""

    def weights_of(self, donors: int) -> tuple[float, ...]:
        """The weight of each donor."""
        return self.weights or (1.0,) * donors

    def count_values(self) -> dict[str, int]:
        """Returns the number of values of each field that has one per donor."""
        values = {name: getattr(self, name) for name in self.by_donor}
        return {name: len(value) for name, value in values.items() if isinstance(value, tuple)}

    @model_validator(mode="after")
    def _one_number_of_donors(self) -> WeightedParams:
        counts = self.count_values()
        if len(set(counts.values())) > 1:
            raise ValueError(
                "these must have one value per donor, but differ in length: "
                + ", ".join(f"`{name}` has {count}" for name, count in counts.items())
            )
        return self


class AveragedParams(WeightedParams):
    """Parameters of a method that computes a weighted sum or mean of its donors."""

    normalize: bool = True
    """Whether the weighted sum is divided by the sum of the weights in it."""

    @model_validator(mode="after")
    def _sum_divides(self) -> AveragedParams:
        if self.normalize and self.weights is not None and math.fsum(self.weights) == 0:
            raise ValueError(
                "`weights` sum to 0, so their sum cannot divide; "
                "change them or set `normalize: false`"
            )
        return self


def one_per_weight(params: WeightedParams) -> DonorRange:
    """The donor range of a weighted method: as many donors as there are weights or other values by
    donor, or any number where there are none."""
    counts = set(params.count_values().values())
    return (min(counts), max(counts)) if counts else (1, None)


@dataclass(frozen=True, kw_only=True)
class MergeMethod:
    """A registered way to combine task vectors into one, group by group."""

    params: type[MergeParams]
    """The model of the method's parameters, each with a default."""
    combine: Callable[[Any, Any, ParamSlice], torch.Tensor]
    """``combine(params, precomputed, part)`` returns the combined task vector of a group or block,
    in the shape and dtype of ``part.base``.

    It changes none of its inputs, does not apply ``scale``, and may return one of ``part.vectors``
    itself. A lone task vector that it returns bit for bit makes the end point alpha = 1 exact
    (``algebra.merge``).
    """
    precompute: Callable[[Any, ParamReader], Any] | None = None
    """``precompute(params, reader)`` computes what ``combine`` needs of the whole model."""
    blockwise: bool = False
    """Whether each position of the result depends on that position of the task vectors and on
    ``precomputed`` alone. ``combine`` is then called with blocks, up to ten times as fast."""
    donors: Callable[[Any], DonorRange] = any_number
    """``donors(params)`` returns how many donors these parameters can take."""
    needs: Literal["fisher", "gram", "layer_gram"] | None = None
    """The statistics of the donors' tuning sets that the method reads."""
    neutral: Mapping[str, Any] | None = None
    """Parameters at which a lone donor comes back bit for bit; ``None`` where there are none."""
    symmetric: bool = True
    """Whether the order of equally weighted donors does not matter."""
    version: int = 1
    """Raised when the method's results change.

    It is part of the identity of the method's merges, only where it is not 1, so that version 1
    keeps older fingerprints.
    """

    @property
    def gather(self) -> str | None:
        """What the donors' fine-tuning gathers for the method. ``layer_gram`` depends on the merged
        lower layers, so it is computed while merging, from waveforms."""
        return "waves" if self.needs == "layer_gram" else self.needs


METHODS: Registry[MergeMethod] = Registry("merge method", "speechft_ray.merging")


def validate_params(
    method: str, params: Mapping[str, Any], donors: int | None = None
) -> MergeParams:
    """Returns the validated parameters of a method.

    Raises ``UserError`` for an unknown method, ``SpecError`` with every mistake in the parameters,
    and ``UserError`` when the method with these parameters cannot take ``donors`` donors (``None``:
    not checked).
    """
    merge_method = METHODS.get(method)
    checked = validate(merge_method.params, dict(params), f"merge method `{method}`")
    fewest, most = merge_method.donors(checked)
    if donors is None or (fewest <= donors and (most is None or donors <= most)):
        return checked
    if most is None:
        allowed = f"at least {fewest}"
    else:
        allowed = f"{fewest}" if most == fewest else f"{fewest} to {most}"
    raise UserError(
        f"the number of donors must be {allowed} for merge method `{method}` with parameters "
        f"{dict(params)}, but is {donors} instead: change the donors or the parameters."
    )
