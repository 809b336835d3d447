"""The trim of TIES: which magnitude a position needs to be kept, over the whole model or in each
tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import torch

from speechft_ray.merging._selection import RankedMagnitude, select_kth_smallest
from speechft_ray.merging.param_reader import ParamGroup, ParamReader, ParamSlice

Scope = Literal["global", "tensor"]
Kept = Literal["threshold", "exact"]


class Cut(NamedTuple):
    """What a trim keeps of one task vector in one part."""

    least: float
    """Smaller magnitudes are dropped."""
    until: int | None = None
    """From this position of the part on, magnitudes that equal ``least`` are dropped as well."""


Cuts = Mapping[str, tuple[Cut, ...]]
"""By name of the part, then by donor."""


def compute_cuts(reader: ParamReader, density: float, scope: Scope, kept: Kept) -> Cuts:
    """Returns the cuts that keep the ``density`` share of each task vector, and remembers them in
    the source.

    ``threshold``: the cut is the k-th smallest magnitude with k = n - int(n * density), or 0 when
    that keeps all. Since the k-th itself is kept, int(n * density) + 1 positions stay, and any that
    tie with it. ``exact``: int(n * density) positions stay, at least 1; among ties those that come
    first.
    """
    key = ("cuts", density, scope, kept)
    if key not in reader.cache:
        reader.cache[key] = _compute_cuts(reader, density, scope, kept)
    found: Cuts = reader.cache[key]
    return found


def trim(values: torch.Tensor, cut: Cut, start: int) -> torch.Tensor:
    """Returns the values with 0 where the cut drops; ``start`` is the position in the part at which
    they begin."""
    if cut.least == 0.0:
        return values
    exact = torch.tensor(cut.least, dtype=values.dtype)
    # The shrinkage drops what is equal to its limit as well, so the limit is the next number below.
    kept = torch.nn.functional.hardshrink(values, float(exact.nextafter(torch.zeros_like(exact))))
    if cut.until is not None and cut.until < start + values.numel():
        late = kept.view(-1)[max(0, cut.until - start) :]
        late.copy_(torch.nn.functional.hardshrink(late, cut.least))
    return kept


def trim_vectors(part: ParamSlice, cuts: Cuts) -> list[torch.Tensor]:
    """Returns the task vectors of a part or block with 0 where the trim drops."""
    return [
        trim(vector, cut, part.start)
        for vector, cut in zip(part.vectors, cuts[part.name], strict=True)
    ]


def _compute_cuts(reader: ParamReader, density: float, scope: Scope, kept: Kept) -> Cuts:
    nothing = (Cut(0.0),) * reader.donors
    if density == 1.0:
        return {group.name: nothing for group in reader.groups}

    def rank(total: int) -> int:
        return (
            total - max(1, int(total * density)) + 1
            if kept == "exact" and total
            else total - int(total * density)
        )

    if scope == "global":
        places = select_kth_smallest(
            lambda: (block.vectors for block in reader.blocks()), reader.donors, rank
        )
        cuts = tuple(Cut(place.value) for place in places)
        return {group.name: cuts for group in reader.groups}
    return {group.name: _compute_group_cuts(group, reader, rank, kept) for group in reader.groups}


def _compute_group_cuts(
    group: ParamGroup, reader: ParamReader, rank: Callable[[int], int], kept: Kept
) -> tuple[Cut, ...]:
    def blocks() -> Iterator[Sequence[torch.Tensor]]:
        return (block.vectors for block in reader.blocks_of(group))

    places = select_kth_smallest(blocks, reader.donors, rank)
    if kept == "threshold":
        return tuple(Cut(place.value) for place in places)
    return tuple(
        Cut(place.value, _find_end_of_ties(place, donor, reader, group))
        for donor, place in enumerate(places)
    )


def _find_end_of_ties(
    place: RankedMagnitude, donor: int, reader: ParamReader, group: ParamGroup
) -> int | None:
    """Returns the position behind the last tie that is kept; ``None`` when all are."""
    left = place.equal - place.place + 1
    if left >= place.equal:
        return None
    for block in reader.blocks_of(group):
        ties = (block.vectors[donor].abs() == place.value).flatten().nonzero().flatten()
        if ties.numel() >= left:
            return block.start + int(ties[left - 1]) + 1
        left -= ties.numel()
    raise AssertionError("a part that is read again is the same")
