"""Merges that stay in memory: base and task vectors are read once, so that a scan over alpha or
scale costs one pass each."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from speechft_ray.merging.algebra import (
    check_alpha,
    combine_all,
    find_statistics,
    move_into,
    refuse_overflow,
)
from speechft_ray.merging.alignment import (
    PosConv,
    State,
    align,
    check_twins,
    find_parts,
    find_twins,
    require_finite,
)
from speechft_ray.merging.base import METHODS, MergeParams, check
from speechft_ray.merging.param_reader import One, Part, Source, reading

KEPT = 2
"""Combined task vectors that are kept, each as large as the base: one that is scanned and the one
before it."""


class _Step(NamedTuple):
    part: Part
    combined: torch.Tensor
    untouched: bool
    largest: float
    """Magnitude that nothing in ``combined`` exceeds."""


def _largest(tensor: torch.Tensor) -> float:
    return max(abs(float(end)) for end in torch.aminmax(tensor)) if tensor.numel() else 0.0


class ResidentMerger:
    """A base, its donors' task vectors and one output buffer, kept for any number of merges.

    Tensors of base and donors are used where they lie and must not change meanwhile; they may be
    views of a mapped file or of memory that processes share. Needs memory for the task vectors, the
    output and up to ``KEPT`` combined task vectors. What surveys found about the task vectors
    alone, such as the trims of TIES by density, is kept as well.
    """

    def __init__(
        self,
        base: State,
        donors: Sequence[State],
        protected_prefixes: Sequence[str] = (),
        statistics: Sequence[State] | None = None,
    ) -> None:
        """Raises ``UserError`` where ``algebra.merge`` would, but for values, which are read by the
        first merge."""
        self._base, self._donors, self._statistics = base, tuple(donors), statistics
        self._prefixes = tuple(protected_prefixes)
        self._twins = find_twins(base)
        for index, donor in enumerate(donors):
            align(base, donor, f"donor {index + 1}", self._prefixes)
        self._readers = [donor.__getitem__ for donor in donors]
        self._sources: dict[tuple[torch.dtype, PosConv, str | None], Source] = {}
        self._steps: OrderedDict[str, list[_Step]] = OrderedDict()
        self._out: dict[str, torch.Tensor] = {}
        self._largest: dict[str, float] = {}

    def merge(
        self, method: str, params: Mapping[str, Any], alpha: float
    ) -> dict[str, torch.Tensor]:
        """Returns what ``algebra.merge`` would, bit for bit, in tensors to be read only, which the
        next merge overwrites.

        Only ``alpha`` and ``scale`` may change for a merge to cost one pass over the output.
        """
        checked = check(method, params, donors=len(self._donors))
        check_alpha(alpha)
        out = self._buffer()
        with torch.no_grad():
            if alpha == 0.0:
                for key in {key for part in self._parts(checked) for key in part.keys}:
                    out[key].copy_(self._base[key])
                return dict(out)
            at_risk: dict[str, torch.Tensor] = {}
            for step in self._combined(method, checked):
                args = (checked.scale, step.untouched, self._base.__getitem__, self._readers, alpha)
                move_into(out, step.part, step.combined, *args)
                if self._may_overflow(step, alpha * checked.scale):
                    at_risk |= {key: out[key] for key in step.part.keys}
            refuse_overflow(at_risk)
        return dict(out)

    def _buffer(self) -> dict[str, torch.Tensor]:
        if not self._out:
            for key, tensor in self._base.items():
                first = self._twins[key]
                self._out[key] = self._out[first] if first != key else tensor.detach().clone()
        return self._out

    def _combined(self, method: str, params: MergeParams) -> list[_Step]:
        """Returns the combined task vector of these parameters, without ``scale``, made anew or
        kept from before."""
        key = f"{method} {params.model_dump_json(exclude={'scale'})}"
        if key in self._steps:
            self._steps.move_to_end(key)
            return self._steps[key]
        source = self._source(method, params)
        spare: dict[str, torch.Tensor] = {}
        if len(self._steps) >= KEPT:
            _, old = self._steps.popitem(last=False)
            spare = {step.part.name: step.combined for step in old if not step.untouched}
        self._steps[key] = [
            _Step(*made, _largest(made[1])) for made in combine_all(method, params, source, spare)
        ]
        return self._steps[key]

    def _may_overflow(self, step: _Step, factor: float) -> bool:
        """Whether the number type of the base may be too narrow for a result; saves a look at every
        value of each merge."""
        base = self._base[step.part.name].detach()
        if step.part.name not in self._largest:
            self._largest[step.part.name] = _largest(base)
        bound = self._largest[step.part.name] + abs(factor) * step.largest
        return len(step.part.keys) > 1 or not bound < torch.finfo(base.dtype).max / 2

    def _parts(self, params: MergeParams) -> tuple[Part, ...]:
        return find_parts(self._base, self._twins, self._prefixes, params.pos_conv)

    def _source(self, method: str, params: MergeParams) -> Source:
        """Returns the task vectors of this number type, read and checked once."""
        needs = METHODS.get(method).needs
        key = (params.number_type, params.pos_conv, needs)
        if key not in self._sources:
            parts = self._parts(params)
            for index, reader in enumerate(self._readers):
                check_twins(self._twins, parts, reader, f"donor {index + 1}")
            gathered = find_statistics(method, self._statistics, len(self._donors))
            read = reading(self._base.__getitem__, self._readers, params.number_type, gathered)
            kept: dict[str, One] = {part.name: read(part) for part in parts}
            source = Source(
                parts=parts, donors=len(self._donors), read=lambda part: kept[part.name]
            )
            require_finite(source, self._base.__getitem__, self._readers)
            self._sources[key] = source
        return self._sources[key]
