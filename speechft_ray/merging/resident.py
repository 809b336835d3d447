"""Merges that stay in memory: base and task vectors are read once, so that a scan over alpha or
scale costs one pass each."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from speechft_ray.merging.algebra import (
    check_alpha,
    check_overflow,
    combine_all,
    interpolate_into,
    make_statistics_lookup,
)
from speechft_ray.merging.alignment import (
    PosConv,
    StateDict,
    check_compatible,
    check_finite,
    check_tied,
    find_groups,
    find_tied,
)
from speechft_ray.merging.base import METHODS, MergeParams, validate_params
from speechft_ray.merging.param_reader import ParamGroup, ParamReader, ParamSlice, make_read

CACHE_SIZE = 2
"""Combined task vectors that are kept, each as large as the base: one that is scanned and the one
before it."""


class _Step(NamedTuple):
    group: ParamGroup
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
        base: StateDict,
        donors: Sequence[StateDict],
        protected_prefixes: Sequence[str] = (),
        statistics: Sequence[StateDict] | None = None,
    ) -> None:
        """Raises ``UserError`` where ``algebra.merge`` would, but for values, which are read by the
        first merge."""
        self._base, self._donors, self._statistics = base, tuple(donors), statistics
        self._prefixes = tuple(protected_prefixes)
        self._tied = find_tied(base)
        for index, donor in enumerate(donors):
            check_compatible(base, donor, f"donor {index + 1}", self._prefixes)
        self._getters = [donor.__getitem__ for donor in donors]
        self._readers: dict[tuple[torch.dtype, PosConv, str | None], ParamReader] = {}
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
        checked = validate_params(method, params, donors=len(self._donors))
        check_alpha(alpha)
        out = self._buffer()
        with torch.no_grad():
            if alpha == 0.0:
                for key in {key for group in self._groups(checked) for key in group.keys}:
                    out[key].copy_(self._base[key])
                return dict(out)
            at_risk: dict[str, torch.Tensor] = {}
            for step in self._combine(method, checked):
                args = (checked.scale, step.untouched, self._base.__getitem__, self._getters, alpha)
                interpolate_into(out, step.group, step.combined, *args)
                if self._may_overflow(step, alpha * checked.scale):
                    at_risk |= {key: out[key] for key in step.group.keys}
            check_overflow(at_risk)
        return dict(out)

    def _buffer(self) -> dict[str, torch.Tensor]:
        if not self._out:
            for key, tensor in self._base.items():
                first = self._tied[key]
                self._out[key] = self._out[first] if first != key else tensor.detach().clone()
        return self._out

    def _combine(self, method: str, params: MergeParams) -> list[_Step]:
        """Returns the combined task vector of these parameters, without ``scale``, made anew or
        kept from before."""
        key = f"{method} {params.model_dump_json(exclude={'scale'})}"
        if key in self._steps:
            self._steps.move_to_end(key)
            return self._steps[key]
        reader = self._reader_for(method, params)
        spare: dict[str, torch.Tensor] = {}
        if len(self._steps) >= CACHE_SIZE:
            _, old = self._steps.popitem(last=False)
            spare = {step.group.name: step.combined for step in old if not step.untouched}
        self._steps[key] = [
            _Step(*combined_group, _largest(combined_group[1]))
            for combined_group in combine_all(method, params, reader, spare)
        ]
        return self._steps[key]

    def _may_overflow(self, step: _Step, factor: float) -> bool:
        """Whether the number type of the base may be too narrow for a result; saves a look at every
        value of each merge."""
        base = self._base[step.group.name].detach()
        if step.group.name not in self._largest:
            self._largest[step.group.name] = _largest(base)
        bound = self._largest[step.group.name] + abs(factor) * step.largest
        return len(step.group.keys) > 1 or not bound < torch.finfo(base.dtype).max / 2

    def _groups(self, params: MergeParams) -> tuple[ParamGroup, ...]:
        return find_groups(self._base, self._tied, self._prefixes, params.pos_conv)

    def _reader_for(self, method: str, params: MergeParams) -> ParamReader:
        """Returns the task vectors of this number type, read and checked once."""
        needs = METHODS.get(method).needs
        key = (params.dtype, params.pos_conv, needs)
        if key not in self._readers:
            groups = self._groups(params)
            for index, getter in enumerate(self._getters):
                check_tied(self._tied, groups, getter, f"donor {index + 1}")
            gathered = make_statistics_lookup(method, self._statistics, len(self._donors))
            read = make_read(self._base.__getitem__, self._getters, params.dtype, gathered)
            parts: dict[str, ParamSlice] = {group.name: read(group) for group in groups}
            reader = ParamReader(
                groups=groups, donors=len(self._donors), read=lambda group: parts[group.name]
            )
            check_finite(reader, self._base.__getitem__, self._getters)
            self._readers[key] = reader
        return self._readers[key]
