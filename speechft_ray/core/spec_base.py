"""What all specs are built from: frozen models, names, and fields that were renamed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=80)]
"""Names become parts of paths and of run names: letters, digits, ``_ . -``."""

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Spec(BaseModel):
    """Base of all specs: frozen, keyword-only, no unknown field, no NaN or infinity (they have no
    fingerprint)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RenamedSpec(Spec):
    """A spec with fields that were renamed.

    Fingerprints hash the names that the fields had first, so ``model_dump`` writes those. Both
    names are read, but not both at once.
    """

    first_names: ClassVar[Mapping[str, str]] = {}
    """First name of each renamed field, by its present name."""
    later_fields: ClassVar[Sequence[str]] = ()
    """Fields that were added after the first sweeps; written only where they differ from their
    default."""

    @model_validator(mode="before")
    @classmethod
    def _read_first_names(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        renamed = dict(raw)
        for name, first in cls.first_names.items():
            if name in raw and first in raw:
                raise ValueError(
                    f"has `{name}` and `{first}`, which is the old name of `{name}`: keep `{name}`"
                )
            if first in raw:
                renamed[name] = renamed.pop(first)
        return renamed

    @model_serializer(mode="wrap")
    def _write_first_names(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialize(self)
        defaults = {name: type(self).model_fields[name].default for name in self.later_fields}
        unset = {name for name, default in defaults.items() if getattr(self, name) == default}
        return {
            self.first_names.get(name, name): value
            for name, value in fields.items()
            if name not in unset
        }


class ConstraintSpec(Spec):
    """A bound on a dev metric that a proposed merge must keep to be selected."""

    metric: str
    """A metric that one of the tasks yields, or ``score``."""
    no_worse_than: float | str
    """``pretrained``: the dev value of the pre-trained encoder. A number: in the metric's unit."""

    @model_validator(mode="after")
    def _a_number_or_the_control(self) -> ConstraintSpec:
        if isinstance(self.no_worse_than, str) and self.no_worse_than != "pretrained":
            raise ValueError(
                "`no_worse_than` must be a number or `pretrained`, "
                f"but is {self.no_worse_than!r} instead"
            )
        return self
