"""The features of a split for the training of probes: in memory, on disk, or encoded for every
batch, each as far as its budget goes."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence

import torch

from speechft_ray.speech.corpora.base import Utterance
from speechft_ray.speech.features.cache import Entry
from speechft_ray.speech.features.rows import JoinedRows, RowSource
from speechft_ray.superb.extractor import (
    Advance,
    Batch,
    Extractor,
    Features,
    Indices,
    Location,
)
from speechft_ray.superb.feature_forms import ExactForm
from speechft_ray.superb.feature_store import IN_MEMORY, FeatureStorage, FeatureStore
from speechft_ray.superb.row_features import MemoryRows, PartlyEncodedFeatures, RowFeatures

_READ_AT_ONCE = 256
"""Utterances that are read from disk into memory at once."""


class InMemoryFeatures:
    """Exact features of all utterances in one tensor."""

    location: Location = "memory"

    def __init__(self, states: torch.Tensor, frames: torch.Tensor) -> None:
        """``states`` is ``(layers, rows, dim)``, ``frames`` the rows of each utterance
        ``(utterances,)``."""
        self.states, self.frames = states, frames
        self.count = len(frames)
        self._ends = frames.cumsum(0)
        self._starts = self._ends - frames

    def batch(self, indices: Indices) -> Batch:
        """Returns the features of these utterances; a slice of means shares the memory of the
        whole."""
        frames = self.frames[indices]
        if isinstance(indices, slice):
            first, last = int(self._starts[indices.start]), int(self._ends[indices.stop - 1])
            return Batch(_to_float32(self.states[:, first:last]), frames)
        # Row r of utterance u has the index start(u) + r; the rows that precede u in the batch are
        # subtracted from the running index.
        offsets = torch.repeat_interleave(
            self._starts[indices] - (frames.cumsum(0) - frames), frames
        )
        rows = offsets + torch.arange(len(offsets))
        return Batch(_to_float32(self.states.index_select(1, rows.to(self.states.device))), frames)

    def read_batches(
        self, order: Iterable[Indices]
    ) -> Generator[tuple[Indices, Batch], None, None]:
        """Yields each of these indices with its batch; nothing is read ahead."""
        for indices in order:
            yield indices, self.batch(indices)


def _to_float32(states: torch.Tensor) -> torch.Tensor:
    return states.float() if states.dtype is torch.float16 else states


def prepare_features(
    extractor: Extractor,
    splits: Mapping[str, Sequence[Utterance]],
    advance: Advance,
    storage: FeatureStorage = IN_MEMORY,
) -> dict[str, Features]:
    """Returns the features of each split, in the order of ``splits``; see ``load_features``."""
    return load_features(FeatureStore(extractor, splits, storage), splits, advance)


def load_features(
    store: FeatureStore, splits: Mapping[str, Sequence[Utterance]], advance: Advance
) -> dict[str, Features]:
    """Returns the features of each split: on disk as far as the budget of the cache goes, in memory
    while they fit, and otherwise encoded for every batch. Means that are not on disk are always in
    memory.

    The sizes follow from the numbers of frames; nothing is tried out.
    """
    free_bytes = store.storage.memory_bytes
    features: dict[str, Features] = {}
    for split, utterances in splits.items():
        located = store.locate(utterances, advance)
        missing = [index for index, place in enumerate(located) if place is None]
        size_bytes = size_in_bytes(store, utterances)
        # Means are small: encoding them for every batch costs more than any amount of memory.
        keeps_all = store.extractor.pooled
        if size_bytes <= free_bytes or (keeps_all and len(missing) == len(utterances)):
            free_bytes -= size_bytes
            features[split] = _load_into_memory(store, utterances, located, advance)
            store.close_files(located)
            continue
        # Of what is not on disk, the first utterances are held in memory.
        in_memory: list[int] = []
        for index in missing:
            size_bytes = store.count_bytes(utterances[index])
            if size_bytes > free_bytes and not keeps_all:
                break
            free_bytes -= size_bytes
            in_memory.append(index)
        features[split] = _join(store, utterances, located, in_memory)
        store.recomputed_count += len(missing) - len(in_memory)
        advance(len(missing))  # there is nothing more to encode ahead
    return features


def open_features(
    store: FeatureStore, utterances: Sequence[Utterance], advance: Advance
) -> Features:
    """Returns the features of a split that is read once: on disk as far as the budget goes, and
    otherwise encoded when they are read. Nothing is held in memory.

    ``advance`` is called for all utterances, unless all are encoded when they are read
    (``location`` is ``recomputed``)."""
    located = store.locate(utterances, advance)
    features = _join(store, utterances, located, [])
    if features.location == "mixed":
        advance(located.count(None))
    return features


def size_in_bytes(store: FeatureStore, utterances: Iterable[Utterance]) -> int:
    """Returns how many bytes the features of these utterances take."""
    return sum(store.count_bytes(utterance) for utterance in utterances)


def _load_into_memory(
    store: FeatureStore,
    utterances: Sequence[Utterance],
    located: Sequence[tuple[Entry, int] | None],
    advance: Advance,
) -> Features:
    """Reads what is on disk, and encodes the rest."""
    counts = [store.count_rows(utterance) for utterance in utterances]
    form, device = store.form, store.extractor.device
    total = sum(counts)
    if isinstance(form, ExactForm):
        # Layer by layer, so that a window of utterances is a view of all.
        packed = torch.empty(form.layers, total, form.dim, dtype=form.dtype, device=device)
        by_row = packed.transpose(0, 1)  # (rows, layers, dim)
    else:
        packed = torch.empty(total, form.width, dtype=form.dtype, device=device)
        by_row = packed
    pieces = torch.split(by_row, counts)
    for indices, rows in _iterate_rows(store, utterances, located, advance):
        for index, piece in zip(
            indices, torch.split(rows, [counts[i] for i in indices]), strict=True
        ):
            pieces[index].copy_(piece.view_as(pieces[index]))
    if isinstance(form, ExactForm):
        return InMemoryFeatures(packed, torch.tensor(counts))
    return RowFeatures(MemoryRows(packed, counts), form, device, "memory")


def _iterate_rows(
    store: FeatureStore,
    utterances: Sequence[Utterance],
    located: Sequence[tuple[Entry, int] | None],
    advance: Advance,
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Yields indices of utterances and their rows, one after the other."""
    on_disk = [(index, place) for index, place in enumerate(located) if place is not None]
    for start in range(0, len(on_disk), _READ_AT_ONCE):
        some = on_disk[start : start + _READ_AT_ONCE]
        rows = JoinedRows([place for _, place in some]).rows(list(range(len(some))))
        yield [index for index, _ in some], rows
    indices_of: dict[int, list[int]] = {}
    for index, place in enumerate(store.list_places(utterances)):
        if located[index] is None:
            indices_of.setdefault(place, []).append(index)
    for place, rows in store.encode(list(indices_of)):
        for index in indices_of[place]:
            yield [index], rows
        advance(len(indices_of[place]))


def _join(
    store: FeatureStore,
    utterances: Sequence[Utterance],
    located: Sequence[tuple[Entry, int] | None],
    in_memory: Sequence[int],
) -> Features:
    """Joins what is on disk, what is to be held in memory, and what is encoded for every batch."""
    places: dict[int, tuple[RowSource, int]] = {
        index: place for index, place in enumerate(located) if place is not None
    }
    location: Location = "disk"
    if in_memory:
        own = store.list_places([utterances[index] for index in in_memory])
        rows_of = {place: rows.cpu() for place, rows in store.encode(own)}
        pieces = [rows_of[place] for place in own]
        held = MemoryRows(torch.cat(pieces), list(map(len, pieces)))
        location = "mixed" if places else "memory"
        places |= {index: (held, position) for position, index in enumerate(in_memory)}
    anew = [index for index in range(len(utterances)) if index not in places]
    if not anew:
        source = JoinedRows([places[index] for index in range(len(utterances))])
        return RowFeatures(source, store.form, store.extractor.device, location)
    front_ends = store.open_front_ends([utterances[index] for index in anew])
    return PartlyEncodedFeatures(
        store.extractor,
        utterances,
        store.form,
        places,
        {anew[position]: place for position, place in front_ends.items()},
    )
