"""Base and donors seen one parameter at a time, so that a merge needs no more memory than its
largest tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

GetTensor = Callable[[str], torch.Tensor]
"""Returns the tensor of that key: of a state dict, of a file."""

BLOCK = 1 << 17
"""Positions that are worked on at once where a method allows it: a block of base, donors and result
stays in a core's cache."""


@dataclass(frozen=True, kw_only=True)
class ParamGroup:
    """What is merged as one: a parameter, or the two factors of a weight-normalised one."""

    name: str
    keys: tuple[str, ...]
    """The parameter's key, which is also the name; or the keys of g and v, named after v."""


@dataclass(frozen=True, kw_only=True)
class ParamSlice:
    """One part of the base and of all donors, in the number type of the arithmetic. Nothing in it
    may be changed.

    A block of a part is flat, and begins at position ``start`` of the part.
    """

    name: str
    base: torch.Tensor
    vectors: tuple[torch.Tensor, ...]
    """The task vector donor - base of each donor, finite, of the base's shape."""
    statistics: tuple[torch.Tensor, ...] = ()
    """What the method ``needs``, by donor, where it was gathered for this part; else empty."""
    start: int = 0
    shape: torch.Size | None = None
    """The shape of the whole part, where this is a block of it."""

    def blocks(self) -> Iterator[ParamSlice]:
        """Yields the part in blocks, as views; statistics that are not one number per position are
        left out."""
        gathered = [item.reshape(-1) for item in self.statistics if item.shape == self.base.shape]
        flat = [self.base.reshape(-1), *(vector.reshape(-1) for vector in self.vectors), *gathered]
        donors = len(self.vectors)
        for start in range(0, max(1, self.base.numel()), BLOCK):
            base, *rest = (tensor[start : start + BLOCK] for tensor in flat)
            vectors, statistics = tuple(rest[:donors]), tuple(rest[donors:])
            yield ParamSlice(
                name=self.name,
                base=base,
                vectors=vectors,
                statistics=statistics,
                start=start,
                shape=self.base.shape,
            )


@dataclass(frozen=True, kw_only=True)
class ParamReader:
    """All parts that a merge moves, sorted by name, to be read as often as needed; a part read
    again is the same."""

    groups: tuple[ParamGroup, ...]
    donors: int
    read: Callable[[ParamGroup], ParamSlice]
    read_blocks: Callable[[ParamGroup], Iterator[ParamSlice]] | None = None
    """Reads a part block by block, where that takes less memory than reading it whole."""
    cache: dict[Any, Any] = field(default_factory=dict)
    """What surveys found out about the task vectors alone, for other merges of the same donors."""

    def __iter__(self) -> Iterator[ParamSlice]:
        return (self.read(group) for group in self.groups)

    def blocks_of(self, group: ParamGroup) -> Iterator[ParamSlice]:
        """Yields one part in blocks of at most ``BLOCK`` positions."""
        return self.read_blocks(group) if self.read_blocks else self.read(group).blocks()

    def blocks(self) -> Iterator[ParamSlice]:
        """Yields all parts in blocks, for what looks at each position by itself."""
        return (block for group in self.groups for block in self.blocks_of(group))

    def with_transform(self, transform: Callable[[ParamSlice], ParamSlice]) -> ParamReader:
        """Returns the source with ``change`` made to all that is read, whole or in blocks."""
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
    statistics: Callable[[str], tuple[torch.Tensor, ...]],
) -> ParamReader:
    """Returns the source of these parts, read from where base and donors lie."""
    given = (base, donors, dtype, statistics)
    return ParamReader(
        groups=groups,
        donors=len(donors),
        read=make_read(*given),
        read_blocks=make_read_blocks(*given),
    )


def make_read(
    base: GetTensor,
    donors: Sequence[GetTensor],
    dtype: torch.dtype,
    statistics: Callable[[str], tuple[torch.Tensor, ...]],
) -> Callable[[ParamGroup], ParamSlice]:
    """Returns the function that reads a part from where base and donors lie, on the base's device.

    Arithmetic is in ``number_type``, or in the base's own type where that is wider.
    ``statistics(name)`` returns what was gathered for a part, by donor.
    """

    def read(group: ParamGroup) -> ParamSlice:
        start = read_value(group, base, dtype)
        vectors = tuple(read_value(group, donor, dtype).to(start) - start for donor in donors)
        # What was gathered for a factor says nothing about the kernel.
        gathered = (
            tuple(item.to(start) for item in statistics(group.name)) if len(group.keys) == 1 else ()
        )
        return ParamSlice(name=group.name, base=start, vectors=vectors, statistics=gathered)

    return read


def make_read_blocks(
    base: GetTensor,
    donors: Sequence[GetTensor],
    dtype: torch.dtype,
    statistics: Callable[[str], tuple[torch.Tensor, ...]],
) -> Callable[[ParamGroup], Iterator[ParamSlice]]:
    """Returns the function that reads a part in blocks; the values are those of ``reading``, a task
    vector is never whole."""
    read = make_read(base, donors, dtype, statistics)

    def read_blocks(group: ParamGroup) -> Iterator[ParamSlice]:
        if len(group.keys) > 1 or statistics(group.name):
            yield from read(group).blocks()
            return
        tensors = [state(group.name).detach() for state in (base, *donors)]
        shape = tensors[0].shape
        start, *ends = (tensor.reshape(-1) for tensor in tensors)
        for place in range(0, max(1, start.numel()), BLOCK):
            first = upcast(start[place : place + BLOCK], dtype)
            vectors = tuple(
                upcast(end[place : place + BLOCK], dtype).to(first) - first for end in ends
            )
            yield ParamSlice(name=group.name, base=first, vectors=vectors, start=place, shape=shape)

    return read_blocks


def read_value(group: ParamGroup, state: GetTensor, dtype: torch.dtype) -> torch.Tensor:
    """Returns the value of a part in a wide number type: the tensor itself, or g * v / |v| of its
    factors."""
    tensors = [upcast(state(key), dtype) for key in group.keys]
    return tensors[0] if len(tensors) == 1 else _kernel(*tensors)


def upcast(tensor: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Returns the tensor in ``number_type`` or its own type, whichever holds more; the same memory
    where that is its own."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, dtype))


def split_kernel(
    kernel: torch.Tensor, g: torch.Tensor, v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns g and v of a kernel: its norms in the shape of ``g``, and itself.

    Where the norm is 0 the direction is that of ``v``, since a network would divide by the norm.
    """
    norm = _norm(kernel, g)
    return norm, torch.where(norm == 0, v.to(kernel), kernel)


def _kernel(g: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return v * (g / _norm(v, g).clamp_min(torch.finfo(v.dtype).tiny))


def _norm(values: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """Returns the Euclidean norm over the axes along which ``g`` has size 1, which is how weight
    normalisation stores them."""
    axes = [axis for axis in range(values.dim()) if g.dim() == 0 or g.shape[axis] == 1]
    norm = torch.linalg.vector_norm(values, dim=axes, keepdim=True) if axes else values.abs()
    return norm.reshape(g.shape)
