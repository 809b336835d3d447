"""Merges whose base and task vectors stay in memory.

Base and donors are read once. A scan over alpha or scale then costs one pass per point.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from speechft_ray.merging.algebra import (
    CombinedGroup,
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
from speechft_ray.merging.param_reader import (
    ParamGroup,
    ParamReader,
    ParamSlice,
    make_read,
    take_sample,
)

CACHE_SIZE = 2
"""Combined task vectors in the cache, each as large as the base: the current one and the previous
one."""


class _CachedGroup(NamedTuple):
    combined: CombinedGroup
    largest: float
    """Largest magnitude in the combined task vector."""


class ResidentMerger:
    """Holds a base, its donors' task vectors and one output buffer for any number of merges.

    Tensors of base and donors are used in place and must not change meanwhile. They may be views of
    a mapped file or of shared memory. Beside them, memory holds the task vectors, the output and up
    to ``CACHE_SIZE`` combined task vectors. Results of ``precompute`` that depend on the task
    vectors alone, such as the cuts of TIES by density, are cached as well.
    """

    def __init__(
        self,
        base: StateDict,
        donors: Sequence[StateDict],
        protected_prefixes: Sequence[str] = (),
        statistics: Sequence[StateDict] | None = None,
    ) -> None:
        """Raises ``UserError`` where ``algebra.merge`` does, except for values: the first merge
        reads and checks those."""
        self._base, self._donors, self._statistics = base, tuple(donors), statistics
        self._prefixes = tuple(protected_prefixes)
        self._tied = find_tied(base)
        for index, donor in enumerate(donors):
            check_compatible(base, donor, f"donor {index + 1}", self._prefixes)
        self._getters = [donor.__getitem__ for donor in donors]
        self._readers: dict[tuple[torch.dtype, PosConv, str | None], ParamReader] = {}
        self._combined: OrderedDict[str, list[_CachedGroup]] = OrderedDict()
        self._out: dict[str, torch.Tensor] = {}
        self._largest: dict[str, float] = {}

    def merge(
        self, method: str, params: Mapping[str, Any], alpha: float
    ) -> dict[str, torch.Tensor]:
        """Returns the result of ``algebra.merge``, bit for bit, in read-only tensors that the next
        merge overwrites.

        A merge costs one pass over the output where only ``alpha`` or ``scale`` differ from a
        cached one.
        """
        checked = validate_params(method, params, donors=len(self._donors))
        check_alpha(alpha)
        out = self._output_buffer()
        with torch.no_grad():
            # alpha 0 is the base, whatever the method.
            if alpha == 0.0:
                for key in {key for group in self._find_groups(checked) for key in group.keys}:
                    out[key].copy_(self._base[key])
                return dict(out)
            # Write base + alpha * scale * combined into the buffer, group by group.
            at_risk: dict[str, torch.Tensor] = {}
            for item in self._combine(method, checked):
                interpolate_into(
                    out,
                    item.combined,
                    checked.scale,
                    self._base.__getitem__,
                    self._getters,
                    alpha,
                )
                if self._may_overflow(item, alpha * checked.scale):
                    at_risk |= {key: out[key] for key in item.combined.group.keys}
            # Look only at the tensors whose bound does not rule out an overflow.
            check_overflow(at_risk)
        return dict(out)

    def _output_buffer(self) -> dict[str, torch.Tensor]:
        """Returns the output tensors, which the first call copies from the base."""
        if not self._out:
            for key, tensor in self._base.items():
                first = self._tied[key]
                self._out[key] = self._out[first] if first != key else _copy(tensor)
        return self._out

    def _combine(self, method: str, params: MergeParams) -> list[_CachedGroup]:
        """Returns the combined task vector of these parameters, without ``scale``, from the cache
        where it is there."""
        key = f"{method} {params.model_dump_json(exclude={'scale'})}"
        if key in self._combined:
            self._combined.move_to_end(key)
            return self._combined[key]
        reader = self._read_vectors(method, params)
        # A full cache gives up its oldest entry, whose memory is used again.
        spare: dict[str, torch.Tensor] = {}
        if len(self._combined) >= CACHE_SIZE:
            _, oldest = self._combined.popitem(last=False)
            spare = {
                combined.group.name: combined.vector
                for combined, _ in oldest
                if not combined.is_donor
            }
        self._combined[key] = [
            _CachedGroup(combined, _largest_magnitude(combined.vector))
            for combined in combine_all(method, params, reader, spare)
        ]
        return self._combined[key]

    def _may_overflow(self, item: _CachedGroup, factor: float) -> bool:
        """Whether the base's dtype may be too narrow for a result.

        The bound |base| + |factor| * |combined| saves a look at every value of each merge.
        """
        group = item.combined.group
        base = self._base[group.name].detach()
        if group.name not in self._largest:
            self._largest[group.name] = _largest_magnitude(base)
        bound = self._largest[group.name] + abs(factor) * item.largest
        return len(group.keys) > 1 or not bound < torch.finfo(base.dtype).max / 2

    def _find_groups(self, params: MergeParams) -> tuple[ParamGroup, ...]:
        return find_groups(self._base, self._tied, self._prefixes, params.pos_conv)

    def _read_vectors(self, method: str, params: MergeParams) -> ParamReader:
        """Returns a reader of task vectors in memory. Reads and checks them once per dtype,
        ``pos_conv`` and kind of statistics."""
        needs = METHODS.get(method).needs
        key = (params.dtype, params.pos_conv, needs)
        if key not in self._readers:
            # Check that what the base ties is tied in the donors, and that statistics are there.
            groups = self._find_groups(params)
            for index, getter in enumerate(self._getters):
                check_tied(self._tied, groups, getter, f"donor {index + 1}")
            lookup = make_statistics_lookup(method, self._statistics, len(self._donors))
            # Compute all task vectors, then check their values.
            read = make_read(self._base.__getitem__, self._getters, params.dtype, lookup)
            parts: dict[str, ParamSlice] = {group.name: read(group) for group in groups}
            reader = ParamReader(
                groups=groups,
                donors=len(self._donors),
                read=lambda group: parts[group.name],
                read_sample=lambda group: take_sample(parts[group.name]),
            )
            check_finite(reader, self._base.__getitem__, self._getters)
            self._readers[key] = reader
        return self._readers[key]


def _largest_magnitude(tensor: torch.Tensor) -> float:
    return max(abs(float(end)) for end in torch.aminmax(tensor)) if tensor.numel() else 0.0


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a copy whose values lie one after the other, as those of a transposed one do not."""
    return tensor.detach().clone(memory_format=torch.contiguous_format)
