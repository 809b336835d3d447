"""Base and donors seen one parameter at a time, so that a merge needs no more memory than its
largest tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

Reader = Callable[[str], torch.Tensor]
"""Returns the tensor of that key: of a state dict, of a file."""

BLOCK = 1 << 17
"""Positions that are worked on at once where a method allows it: a block of base, donors and result
stays in a core's cache."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What is merged as one: a parameter, or the two factors of a weight-normalised one."""

    name: str
    keys: tuple[str, ...]
    """The parameter's key, which is also the name; or the keys of g and v, named after v."""


@dataclass(frozen=True, kw_only=True)
class One:
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

    def blocks(self) -> Iterator[One]:
        """Yields the part in blocks, as views; statistics that are not one number per position are
        left out."""
        gathered = [item.reshape(-1) for item in self.statistics if item.shape == self.base.shape]
        flat = [self.base.reshape(-1), *(vector.reshape(-1) for vector in self.vectors), *gathered]
        donors = len(self.vectors)
        for start in range(0, max(1, self.base.numel()), BLOCK):
            base, *rest = (tensor[start : start + BLOCK] for tensor in flat)
            vectors, statistics = tuple(rest[:donors]), tuple(rest[donors:])
            yield One(
                name=self.name,
                base=base,
                vectors=vectors,
                statistics=statistics,
                start=start,
                shape=self.base.shape,
            )


@dataclass(frozen=True, kw_only=True)
class Source:
    """All parts that a merge moves, sorted by name, to be read as often as needed; a part read
    again is the same."""

    parts: tuple[Part, ...]
    donors: int
    read: Callable[[Part], One]
    read_blocks: Callable[[Part], Iterator[One]] | None = None
    """Reads a part block by block, where that takes less memory than reading it whole."""
    known: dict[Any, Any] = field(default_factory=dict)
    """What surveys found out about the task vectors alone, for other merges of the same donors."""

    def __iter__(self) -> Iterator[One]:
        return (self.read(part) for part in self.parts)

    def blocks_of(self, part: Part) -> Iterator[One]:
        """Yields one part in blocks of at most ``BLOCK`` positions."""
        return self.read_blocks(part) if self.read_blocks else self.read(part).blocks()

    def blocks(self) -> Iterator[One]:
        """Yields all parts in blocks, for what looks at each position by itself."""
        return (block for part in self.parts for block in self.blocks_of(part))

    def changed(self, change: Callable[[One], One]) -> Source:
        """Returns the source with ``change`` made to all that is read, whole or in blocks."""
        return Source(
            parts=self.parts,
            donors=self.donors,
            read=lambda part: change(self.read(part)),
            read_blocks=lambda part: (change(block) for block in self.blocks_of(part)),
        )


def source_of(
    parts: tuple[Part, ...],
    base: Reader,
    donors: Sequence[Reader],
    number_type: torch.dtype,
    statistics: Callable[[str], tuple[torch.Tensor, ...]],
) -> Source:
    """Returns the source of these parts, read from where base and donors lie."""
    given = (base, donors, number_type, statistics)
    return Source(
        parts=parts, donors=len(donors), read=reading(*given), read_blocks=reading_blocks(*given)
    )


def reading(
    base: Reader,
    donors: Sequence[Reader],
    number_type: torch.dtype,
    statistics: Callable[[str], tuple[torch.Tensor, ...]],
) -> Callable[[Part], One]:
    """Returns the function that reads a part from where base and donors lie, on the base's device.

    Arithmetic is in ``number_type``, or in the base's own type where that is wider.
    ``statistics(name)`` returns what was gathered for a part, by donor.
    """

    def read(part: Part) -> One:
        start = whole(part, base, number_type)
        vectors = tuple(whole(part, donor, number_type).to(start) - start for donor in donors)
        # What was gathered for a factor says nothing about the kernel.
        gathered = (
            tuple(item.to(start) for item in statistics(part.name)) if len(part.keys) == 1 else ()
        )
        return One(name=part.name, base=start, vectors=vectors, statistics=gathered)

    return read


def reading_blocks(
    base: Reader,
    donors: Sequence[Reader],
    number_type: torch.dtype,
    statistics: Callable[[str], tuple[torch.Tensor, ...]],
) -> Callable[[Part], Iterator[One]]:
    """Returns the function that reads a part in blocks; the values are those of ``reading``, a task
    vector is never whole."""
    read = reading(base, donors, number_type, statistics)

    def read_blocks(part: Part) -> Iterator[One]:
        if len(part.keys) > 1 or statistics(part.name):
            yield from read(part).blocks()
            return
        tensors = [state(part.name).detach() for state in (base, *donors)]
        shape = tensors[0].shape
        start, *ends = (tensor.reshape(-1) for tensor in tensors)
        for place in range(0, max(1, start.numel()), BLOCK):
            first = wide(start[place : place + BLOCK], number_type)
            vectors = tuple(
                wide(end[place : place + BLOCK], number_type).to(first) - first for end in ends
            )
            yield One(name=part.name, base=first, vectors=vectors, start=place, shape=shape)

    return read_blocks


def whole(part: Part, state: Reader, number_type: torch.dtype) -> torch.Tensor:
    """Returns the value of a part in a wide number type: the tensor itself, or g * v / |v| of its
    factors."""
    tensors = [wide(state(key), number_type) for key in part.keys]
    return tensors[0] if len(tensors) == 1 else _kernel(*tensors)


def wide(tensor: torch.Tensor, number_type: torch.dtype = torch.float32) -> torch.Tensor:
    """Returns the tensor in ``number_type`` or its own type, whichever holds more; the same memory
    where that is its own."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, number_type))


def factors(
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
