"""Base and donors seen one parameter at a time, so that a merge needs no more memory than its largest tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

Reader = Callable[[str], torch.Tensor]
"""Returns the tensor of that key: of a state dict, of a file."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What is merged as one: a parameter, or the two factors of a weight-normalised one."""

    name: str
    keys: tuple[str, ...]
    """The parameter's key, which is also the name; or the keys of g and v, named after v."""


@dataclass(frozen=True, kw_only=True)
class One:
    """One part of the base and of all donors, in the number type of the arithmetic. Nothing in it may be changed."""

    name: str
    base: torch.Tensor
    vectors: tuple[torch.Tensor, ...]
    """The task vector donor - base of each donor, finite, of the base's shape."""
    statistics: tuple[torch.Tensor, ...] = ()
    """What the method ``needs``, by donor, where it was gathered for this part; else empty."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """All parts that a merge moves, sorted by name, to be read as often as needed; a part read again is the same."""

    parts: tuple[Part, ...]
    donors: int
    read: Callable[[Part], One]

    def __iter__(self) -> Iterator[One]:
        return (self.read(part) for part in self.parts)


def reading(
    base: Reader, donors: Sequence[Reader], number_type: torch.dtype, statistics: Callable[[str], tuple[torch.Tensor, ...]]
) -> Callable[[Part], One]:
    """Returns the function that reads a part from where base and donors lie, on the base's device.

    Arithmetic is in ``number_type``, or in the base's own type where that is wider. ``statistics(name)`` returns what was
    gathered for a part, by donor.
    """

    def read(part: Part) -> One:
        start = whole(part, base, number_type)
        vectors = tuple(whole(part, donor, number_type).to(start) - start for donor in donors)
        return One(name=part.name, base=start, vectors=vectors, statistics=statistics(part.name))

    return read


def whole(part: Part, state: Reader, number_type: torch.dtype) -> torch.Tensor:
    """Returns the value of a part in a wide number type: the tensor itself, or g * v / |v| of its factors."""
    tensors = [wide(state(key), number_type) for key in part.keys]
    return tensors[0] if len(tensors) == 1 else _kernel(*tensors)


def wide(tensor: torch.Tensor, number_type: torch.dtype = torch.float32) -> torch.Tensor:
    """Returns the tensor in ``number_type`` or its own type, whichever holds more; the same memory where that is its own."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, number_type))


def factors(kernel: torch.Tensor, g: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns g and v of a kernel: its norms in the shape of ``g``, and itself.

    Where the norm is 0 the direction is that of ``v``, since a network would divide by the norm.
    """
    norm = _norm(kernel, g)
    return norm, torch.where(norm == 0, v.to(kernel), kernel)


def _kernel(g: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return v * (g / _norm(v, g).clamp_min(torch.finfo(v.dtype).tiny))


def _norm(values: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """Returns the Euclidean norm over the axes along which ``g`` has size 1, which is how weight normalisation stores them."""
    axes = [axis for axis in range(values.dim()) if g.dim() == 0 or g.shape[axis] == 1]
    norm = torch.linalg.vector_norm(values, dim=axes, keepdim=True) if axes else values.abs()
    return norm.reshape(g.shape)
