"""The spec of one merge."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from speechft_ray.core.spec_base import Fraction, Name, Spec


class MergeSpec(Spec):
    """A merge of tuned weights into the pre-trained ones: theta0 + alpha * (merged - theta0)."""

    method: str = "linear"
    """Registered merge method."""
    params: dict[str, JsonValue] = Field(default_factory=dict)
    """The method's own parameters (checked by its model)."""
    alpha: Fraction = 0.25
    """Share of the tuned model (paper: 0.25 everywhere; 0 is the pre-trained, 1 the stably
    fine-tuned model)."""
    donors: Literal["each"] | Annotated[tuple[Name, ...], Field(min_length=1)] = "each"
    """``each``: every fine-tuned model alone. Names of fine-tuning runs: merged together, seed by
    seed."""
    checkpoint: Literal["best"] | Annotated[float, Field(gt=0, lt=1)] = "best"
    """Weights of the donors: those of the best validation, or those stored at that fraction
    (``keep_at``)."""
    control: bool = True
    """Whether alpha 1 of the same donors, the fine-tuned model without interpolation, is evaluated
    beside it."""
    predicted_from: tuple[Fraction, ...] = ()
    """Alphas of the same merge whose features predict those of this one; such a merge is evaluated
    on dev without being made. ``alpha: {curve: 21}`` in a search space sets this for every alpha
    that it does not encode (``core.alpha_curves``)."""
    verify: Annotated[int, Field(ge=0)] = 0
    """How many predicted merges of its curve, the best on dev, are made and evaluated."""

    @model_validator(mode="after")
    def _check_prediction(self) -> MergeSpec:
        points = self.predicted_from
        if points and not (
            len(set(points)) == len(points) > 1 and min(points) < self.alpha < max(points)
        ):
            raise ValueError(
                "`predicted_from` must be different alphas on both sides of `alpha`, "
                f"but is {list(points)} instead"
            )
        if self.verify and not points:
            raise ValueError("`verify` belongs to `predicted_from`: set that, or leave it out")
        return self

    @model_serializer(mode="wrap")
    def _without_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialize(self)
        defaults = {"checkpoint": "best", "control": True, "predicted_from": (), "verify": 0}
        return {
            name: value
            for name, value in fields.items()
            if name not in defaults or getattr(self, name) != defaults[name]
        }
