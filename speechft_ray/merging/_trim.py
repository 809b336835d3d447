"""The trim of TIES: sets small magnitudes to 0, by one threshold per model or per tensor."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import torch

from speechft_ray.merging._selection import (
    Rank,
    RankedMagnitude,
    Sample,
    select_kth_smallest,
)
from speechft_ray.merging.base import spread
from speechft_ray.merging.param_reader import ParamGroup, ParamReader, ParamSlice

Scope = Literal["global", "tensor"]
Kept = Literal["threshold", "mask_rate", "exact"]


SAMPLE_SIZE = 1 << 20
"""Largest number of positions in a sample of the whole model."""


class Cut(NamedTuple):
    """The threshold of a trim for one task vector in one group."""

    least: float
    """Smaller magnitudes are dropped."""
    until: int | None = None
    """From this position of the group on, magnitudes that equal ``least`` are dropped as well."""


Cuts = Mapping[str, tuple[Cut, ...]]
"""By name of the group, then by donor."""


def compute_cuts(
    reader: ParamReader, density: float | tuple[float, ...], scope: Scope, kept: Kept
) -> Cuts:
    """Returns the cuts that keep the ``density`` share of each task vector, from the reader's cache
    where they are there. ``density``: one for all donors, or one for each.

    ``threshold``: the cut is the k-th smallest magnitude with k = n - int(n * density), or 0 when
    that keeps all. Since the k-th itself is kept, int(n * density) + 1 positions stay, and any that
    tie with it. ``mask_rate``: k = int(n * (1 - density)), which is one less where n * density is
    not whole (MergeLM). ``exact``: int(n * density) positions stay, at least 1; of equal magnitudes
    the first ones stay.
    """
    densities = spread(density, reader.donors)
    key = ("cuts", densities, scope, kept)
    if key not in reader.cache:
        reader.cache[key] = _compute_cuts(reader, densities, scope, kept)
    cuts: Cuts = reader.cache[key]
    return cuts


def trim(values: torch.Tensor, cut: Cut, start: int) -> torch.Tensor:
    """Returns the values with 0 where the cut drops them; they begin at position ``start`` of the
    group."""
    if cut.least == 0.0:
        return values
    # hardshrink also drops values equal to its limit, so the limit is the next number below.
    trimmed = torch.nn.functional.hardshrink(values, _find_next_below(cut.least, values.dtype))
    if cut.until is not None and cut.until < start + values.numel():
        late = trimmed.view(-1)[max(0, cut.until - start) :]
        late.copy_(torch.nn.functional.hardshrink(late, cut.least))
    return trimmed


@lru_cache(maxsize=1024)
def _find_next_below(value: float, dtype: torch.dtype) -> float:
    """Returns the next number towards 0 in ``dtype``; cached, since each block needs it."""
    exact = torch.tensor(value, dtype=dtype)
    return float(exact.nextafter(torch.zeros_like(exact)))


def trim_vectors(part: ParamSlice, cuts: Cuts) -> list[torch.Tensor]:
    """Returns the task vectors of a group or block with 0 where the trim drops values."""
    return [
        trim(vector, cut, part.start)
        for vector, cut in zip(part.vectors, cuts[part.name], strict=True)
    ]


def compute_trim_gains(reader: ParamReader, cuts: Cuts) -> Mapping[str, tuple[float, ...]]:
    """Returns the factors that restore the L1 norm of each tensor after the trim, by name of the
    group, then by donor (mergekit's ``rescale``). Reads the model once."""
    norms = {
        group.name: torch.zeros(2, reader.donors, dtype=torch.float64) for group in reader.groups
    }
    for block in reader.blocks():
        for donor, (vector, trimmed) in enumerate(
            zip(block.vectors, trim_vectors(block, cuts), strict=True)
        ):
            norms[block.name][0, donor] += float(vector.abs().sum())
            norms[block.name][1, donor] += float(trimmed.abs().sum())
    return {
        name: tuple(torch.where(after > 0, before / after, 1.0).tolist())
        for name, (before, after) in norms.items()
    }


def _compute_cuts(
    reader: ParamReader, densities: tuple[float, ...], scope: Scope, kept: Kept
) -> Cuts:
    if all(density == 1.0 for density in densities):
        keep_all = (Cut(0.0),) * reader.donors
        return {group.name: keep_all for group in reader.groups}

    def rank(donor: int, total: int) -> int:
        density = densities[donor]
        if kept == "exact" and total:
            return total - max(1, int(total * density)) + 1
        # 1 - 0.7 is not 0.3 in floating point, but a rate is written in decimals.
        return (
            int(total * round(1.0 - density, 12))
            if kept == "mask_rate"
            else total - int(total * density)
        )

    if scope == "global":
        magnitudes = select_kth_smallest(
            lambda: (block.vectors for block in reader.blocks()),
            reader.donors,
            rank,
            _read_sample(reader, reader.groups),
        )
        cuts = tuple(Cut(magnitude.value) for magnitude in magnitudes)
        return {group.name: cuts for group in reader.groups}
    return {group.name: _compute_group_cuts(group, reader, rank, kept) for group in reader.groups}


def _compute_group_cuts(
    group: ParamGroup, reader: ParamReader, rank: Rank, kept: Kept
) -> tuple[Cut, ...]:
    def blocks() -> Iterator[Sequence[torch.Tensor]]:
        return (block.vectors for block in reader.blocks_of(group))

    magnitudes = select_kth_smallest(blocks, reader.donors, rank, _read_sample(reader, [group]))
    if kept != "exact":
        return tuple(Cut(magnitude.value) for magnitude in magnitudes)
    return tuple(
        Cut(magnitude.value, _find_end_of_ties(magnitude, donor, reader, group))
        for donor, magnitude in enumerate(magnitudes)
    )


def _read_sample(reader: ParamReader, groups: Iterable[ParamGroup]) -> Sample | None:
    """Reads a sample of these groups; ``None`` where that takes as long as reading them.

    Memory holds at most ``SAMPLE_SIZE`` positions of each donor and those of one group: a larger
    sample loses every second position, and so does what is read later.
    """
    if reader.read_sample is None:
        return None
    values: list[list[torch.Tensor]] = [[] for _ in range(reader.donors)]
    total, size, step = 0, 0, 1
    for group in groups:
        part = reader.read_sample(group)
        total += math.prod(part.base.shape if part.shape is None else part.shape)
        size += len(part.base[::step])
        for own, vector in zip(values, part.vectors, strict=True):
            own.append(vector[::step])
        if size > SAMPLE_SIZE:
            values = [[vector[::2].clone() for vector in own] for own in values]
            size, step = sum(len(vector) for vector in values[0]), 2 * step
    return Sample(values, total)


def _find_end_of_ties(
    magnitude: RankedMagnitude, donor: int, reader: ParamReader, group: ParamGroup
) -> int | None:
    """Returns the position behind the last equal magnitude that is kept; ``None`` when all are."""
    to_keep = magnitude.equal - magnitude.order + 1
    if to_keep >= magnitude.equal:
        return None
    for block in reader.blocks_of(group):
        ties = (block.vectors[donor].abs() == magnitude.value).flatten().nonzero().flatten()
        if ties.numel() >= to_keep:
            return block.start + int(ties[to_keep - 1]) + 1
        to_keep -= ties.numel()
    raise AssertionError("reading a group again gives the same values")
