"""Reads base and donors one parameter at a time.

A merge therefore needs no more memory than its largest tensor takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

GetTensor = Callable[[str], torch.Tensor]
"""Returns the tensor of a key, from a state dict or from a file."""

GetStatistics = Callable[[str], tuple[torch.Tensor, ...]]
"""Returns the statistics of a parameter, one tensor per donor; empty where none were gathered."""

BLOCK = 1 << 17
"""Positions that a blockwise method processes at once. A block of base, donors and result stays in
a core's cache."""

SAMPLE_STEP = 61
"""Step between the positions of a sample: prime, so that it meets all columns of a matrix."""


@dataclass(frozen=True, kw_only=True)
class ParamGroup:
    """What is merged as one tensor: a parameter, or the two factors of a weight-normalised one."""

    name: str
    keys: tuple[str, ...]
    """The parameter's key, which is also the name; or the keys of g and v, named after v."""


@dataclass(frozen=True, kw_only=True)
class ParamSlice:
    """A group, or a block of one, of the base and all donors, in the dtype of the arithmetic.

    A block is flat and begins at position ``start`` of the group. No tensor may be changed.
    """

    name: str
    """Name of the group."""
    base: torch.Tensor
    vectors: tuple[torch.Tensor, ...]
    """The task vector donor - base of each donor, finite, of the base's shape."""
    statistics: tuple[torch.Tensor, ...] = ()
    """The statistics that the method ``needs``, by donor; empty where this group has none."""
    start: int = 0
    shape: torch.Size | None = None
    """The shape of the whole group, where this is a block of it."""

    def blocks(self) -> Iterator[ParamSlice]:
        """Yields blocks as views. Leaves out statistics that are not one number per position."""
        statistics = [item.reshape(-1) for item in self.statistics if item.shape == self.base.shape]
        vectors = [vector.reshape(-1) for vector in self.vectors]
        base, donors = self.base.reshape(-1), len(vectors)
        for start in range(0, max(1, base.numel()), BLOCK):
            first, *rest = (
                tensor[start : start + BLOCK] for tensor in (base, *vectors, *statistics)
            )
            yield ParamSlice(
                name=self.name,
                base=first,
                vectors=tuple(rest[:donors]),
                statistics=tuple(rest[donors:]),
                start=start,
                shape=self.base.shape,
            )


@dataclass(frozen=True, kw_only=True)
class ParamReader:
    """Reads the groups that a merge changes, sorted by name, as often as needed.

    Reading a group again gives the same values.
    """

    groups: tuple[ParamGroup, ...]
    donors: int
    """Number of donors."""
    read: Callable[[ParamGroup], ParamSlice]
    read_blocks: Callable[[ParamGroup], Iterator[ParamSlice]] | None = None
    """Reads a group block by block, where that takes less memory than reading it whole."""
    read_sample: Callable[[ParamGroup], ParamSlice] | None = None
    """Reads one of every ``SAMPLE_STEP`` positions of a group, flat, where that is faster than
    reading it whole."""
    cache: dict[Any, Any] = field(default_factory=dict)
    """Results of ``precompute`` that depend on the task vectors alone, for later merges of the same
    donors."""

    def __iter__(self) -> Iterator[ParamSlice]:
        return (self.read(group) for group in self.groups)

    def blocks_of(self, group: ParamGroup) -> Iterator[ParamSlice]:
        """Yields one group in blocks of at most ``BLOCK`` positions."""
        return self.read_blocks(group) if self.read_blocks else self.read(group).blocks()

    def blocks(self) -> Iterator[ParamSlice]:
        """Yields all groups in blocks."""
        return (block for group in self.groups for block in self.blocks_of(group))

    def with_transform(self, transform: Callable[[ParamSlice], ParamSlice]) -> ParamReader:
        """Returns a reader that applies ``transform`` to each group and block, with a cache of its
        own."""
        return ParamReader(
            groups=self.groups,
            donors=self.donors,
            read=lambda group: transform(self.read(group)),
            read_blocks=lambda group: (transform(block) for block in self.blocks_of(group)),
        )


def make_reader(
    groups: tuple[ParamGroup, ...],
    base: GetTensor,
    donors: Sequence[GetTensor],
    dtype: torch.dtype,
    statistics: GetStatistics,
) -> ParamReader:
    """Returns a reader of these groups that keeps nothing in memory."""
    return ParamReader(
        groups=groups,
        donors=len(donors),
        read=make_read(base, donors, dtype, statistics),
        read_blocks=make_read_blocks(base, donors, dtype, statistics),
        read_sample=make_read_sample(base, donors, dtype),
    )


def make_read(
    base: GetTensor, donors: Sequence[GetTensor], dtype: torch.dtype, statistics: GetStatistics
) -> Callable[[ParamGroup], ParamSlice]:
    """Returns the function that reads a whole group, onto the base's device.

    Values are in ``dtype``, or in the base's own dtype where that is wider.
    """

    def read(group: ParamGroup) -> ParamSlice:
        start = read_value(group, base, dtype)
        vectors = tuple(read_value(group, donor, dtype).to(start) - start for donor in donors)
        # Statistics of a factor say nothing about the kernel.
        gathered = statistics(group.name) if len(group.keys) == 1 else ()
        return ParamSlice(
            name=group.name,
            base=start,
            vectors=vectors,
            statistics=tuple(item.to(start) for item in gathered),
        )

    return read


def make_read_blocks(
    base: GetTensor, donors: Sequence[GetTensor], dtype: torch.dtype, statistics: GetStatistics
) -> Callable[[ParamGroup], Iterator[ParamSlice]]:
    """Returns the function that reads a group in blocks, with the values of ``make_read``.

    No task vector is ever whole in memory, except of kernels and of groups with statistics.
    """
    read = make_read(base, donors, dtype, statistics)

    def read_blocks(group: ParamGroup) -> Iterator[ParamSlice]:
        if len(group.keys) > 1 or statistics(group.name):
            yield from read(group).blocks()
            return
        tensors = [state(group.name).detach() for state in (base, *donors)]
        for start in range(0, max(1, tensors[0].numel()), BLOCK):
            yield _read_positions(group.name, tensors, slice(start, start + BLOCK), dtype)

    return read_blocks


def make_read_sample(
    base: GetTensor, donors: Sequence[GetTensor], dtype: torch.dtype
) -> Callable[[ParamGroup], ParamSlice]:
    """Returns the function that reads one of every ``SAMPLE_STEP`` positions of a group, with the
    values of ``make_read``."""
    read = make_read(base, donors, dtype, lambda name: ())

    def read_sample(group: ParamGroup) -> ParamSlice:
        if len(group.keys) > 1:
            return take_sample(read(group))
        tensors = [state(group.name).detach() for state in (base, *donors)]
        return _read_positions(group.name, tensors, slice(None, None, SAMPLE_STEP), dtype)

    return read_sample


def take_sample(part: ParamSlice) -> ParamSlice:
    """Returns one of every ``SAMPLE_STEP`` positions of a group, as views."""
    base, *vectors = (tensor.reshape(-1)[::SAMPLE_STEP] for tensor in (part.base, *part.vectors))
    return ParamSlice(name=part.name, base=base, vectors=tuple(vectors), shape=part.base.shape)


def _read_positions(
    name: str, tensors: Sequence[torch.Tensor], positions: slice, dtype: torch.dtype
) -> ParamSlice:
    start, *ends = (tensor.reshape(-1)[positions] for tensor in tensors)
    first = upcast(start, dtype)
    return ParamSlice(
        name=name,
        base=first,
        vectors=tuple(upcast(end, dtype).to(first) - first for end in ends),
        start=positions.start or 0,
        shape=tensors[0].shape,
    )


def read_value(group: ParamGroup, state: GetTensor, dtype: torch.dtype) -> torch.Tensor:
    """Returns the upcast value of a group: the tensor itself, or the kernel g * v / |v|."""
    tensors = [upcast(state(key), dtype) for key in group.keys]
    return tensors[0] if len(tensors) == 1 else _compose_kernel(*tensors)


def upcast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Returns the tensor in ``dtype`` or its own dtype, whichever is wider; the same memory where
    that is its own."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, dtype))


def split_kernel(
    kernel: torch.Tensor, g: torch.Tensor, v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns g and v of a kernel: its norms in the shape of ``g``, and the kernel itself.

    Where the norm is 0, v keeps the direction of the old ``v``, since a network divides by its
    norm.
    """
    norm = _compute_norm(kernel, g)
    return norm, torch.where(norm == 0, v.to(kernel), kernel)


def _compose_kernel(g: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return v * (g / _compute_norm(v, g).clamp_min(torch.finfo(v.dtype).tiny))


def _compute_norm(values: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """Returns the Euclidean norm over the axes along which ``g`` has size 1, which is how weight
    normalisation stores them."""
    axes = [axis for axis in range(values.dim()) if g.dim() == 0 or g.shape[axis] == 1]
    norm = torch.linalg.vector_norm(values, dim=axes, keepdim=True) if axes else values.abs()
    return norm.reshape(g.shape)
