"""What a merge method is to the rest of the house, and where methods register."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from speechft_ray.core.errors import UserError
from speechft_ray.core.registry import Registry
from speechft_ray.core.validation import validated

TaskVector = Mapping[str, torch.Tensor]
"""donor - base, by parameter name: finite, float32 (float64 for a float64 base), without protected parameters, integer buffers
and second names of one tensor. All task vectors of one merge have the same keys, in sorted order, and the same shapes."""

DonorRange = tuple[int, int | None]
"""Fewest and most donors; ``None``: any number."""


def any_number(params: Any) -> DonorRange:
    """The donor range of a method that takes one donor or more."""
    return 1, None


class MergeParams(BaseModel):
    """Base of all parameter models: frozen, no unknown field, finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, kw_only=True)
class MergeMethod:
    """A registered way to combine task vectors into one.

    ``params``: the model of its parameters, each with a default. ``combine(params, vectors)`` returns the combined task vector,
    with the keys and shapes of ``vectors``, and changes none of them. A lone task vector that it returns bit for bit makes the
    end point alpha = 1 exact (``algebra.merge``). ``donors(params)``: how many donors these parameters can take.
    """

    params: type[MergeParams]
    combine: Callable[[Any, Sequence[TaskVector]], dict[str, torch.Tensor]]
    donors: Callable[[Any], DonorRange] = any_number


METHODS: Registry[MergeMethod] = Registry("merge method", "speechft_ray.merging")


def check(method: str, params: Mapping[str, Any], donors: int | None = None) -> MergeParams:
    """Returns the validated parameters, before anything is computed.

    Raises ``UserError`` for an unknown method, ``SpecError`` with every mistake in the parameters, and ``UserError`` when the
    method with these parameters cannot take so many donors (not checked when ``donors`` is ``None``).
    """
    found = METHODS.get(method)
    checked = validated(found.params, dict(params), f"merge method `{method}`")
    fewest, most = found.donors(checked)
    if donors is None or (fewest <= donors and (most is None or donors <= most)):
        return checked
    wanted = f"at least {fewest}" if most is None else f"{fewest}" if most == fewest else f"{fewest} to {most}"
    raise UserError(
        f"the number of donors must be {wanted} for merge method `{method}` with parameters {dict(params)}, but is {donors} "
        "instead: change the donors or the parameters."
    )
