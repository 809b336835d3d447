"""Stores the features of a split for the training of probes: in memory, on disk, or not at all."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import torch

from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.core.units import frame_count
from speechft_ray.speech.corpora.base import Utterance
from speechft_ray.speech.features.cache import Entry, FeatureCache
from speechft_ray.speech.features.front_end import EncodingContext
from speechft_ray.speech.prefetch import pin, read_ahead
from speechft_ray.superb.extractor import (
    Advance,
    Batch,
    Extractor,
    Features,
    Indices,
    Location,
    no_context,
)

MEMORY_BYTES = 1 << 30
"""Features that one evaluation holds in memory: 1 GiB of frames is two hours of a 7 x 192 encoder
(50 frames of 2.7 kB a second) or 18 minutes of a Base encoder (13 x 768, 20 kB a frame); of means,
27 000 utterances of a Base encoder. What exceeds it is stored on disk, and what exceeds the disk's
budget is encoded again for every batch."""


class InMemoryFeatures:
    """Features of all utterances in one tensor, encoded once."""

    location: Location = "memory"

    def __init__(self, states: torch.Tensor, frames: torch.Tensor) -> None:
        """``states`` is ``(layers, rows, dim)``, ``frames`` the rows of each utterance
        ``(utterances,)``."""
        self.states, self.frames = states, frames
        self.count = len(frames)
        self._ends = frames.cumsum(0)
        self._starts = self._ends - frames

    @classmethod
    def encode(
        cls, extractor: Extractor, utterances: Sequence[Utterance], advance: Advance
    ) -> InMemoryFeatures:
        """Encodes all utterances."""
        # One packed tensor: the rows of each utterance follow from its number of samples.
        frames = torch.tensor(
            [1 if extractor.pooled else frame_count(utterance.samples) for utterance in utterances]
        )
        rows = [
            slice(end - count, end)
            for end, count in zip(frames.cumsum(0).tolist(), frames.tolist(), strict=True)
        ]
        layers, dim = extractor.encoder.state_count, extractor.encoder.dim
        packed = torch.empty(
            layers, int(frames.sum()), dim, dtype=extractor.dtype, device=extractor.device
        )
        # Groups arrive by length; each utterance is written to its own rows.
        with extractor.share_front_end(utterances) as within:
            for group, group_states in extractor.encode_groups(utterances, within):
                for index, states in zip(group, group_states, strict=True):
                    packed[:, rows[index]] = states
                advance(len(group))
        return cls(packed, frames)

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


class DiskFeatures:
    """Features in a file, of which only the rows of a batch are read into memory."""

    location: Location = "disk"

    def __init__(self, entry: Entry, layers: int, device: torch.device) -> None:
        self._entry, self._layers, self._device = entry, layers, device
        self._frames = torch.tensor(entry.counts)
        self.count = len(entry.counts)

    def batch(self, indices: Indices) -> Batch:
        """Reads the features of these utterances."""
        return self._make_batch(indices, self._read_rows(indices))

    def read_batches(
        self, order: Iterable[Indices]
    ) -> Generator[tuple[Indices, Batch], None, None]:
        """Yields each of these indices with its batch; one thread reads the next ones ahead."""

        def count_bytes(indices: Indices) -> int:
            return self._entry.reader.row_bytes * int(self._frames[indices].sum())

        with closing(read_ahead(order, self._read_rows, count_bytes, threads=1)) as pairs:
            for indices, rows in pairs:
                yield indices, self._make_batch(indices, rows)

    def _read_rows(self, indices: Indices) -> torch.Tensor:
        """Reads ``(rows, layers * dim)``. Runs in a reading thread."""
        selected = torch.arange(self.count)[indices].tolist()
        return pin(self._entry.rows(selected), self._device)

    def _make_batch(self, indices: Indices, rows: torch.Tensor) -> Batch:
        states = torch.unflatten(
            rows.to(self._device, non_blocking=True), 1, (self._layers, -1)
        )  # (rows, layers, dim)
        return Batch(_to_float32(states.transpose(0, 1)).contiguous(), self._frames[indices])

    def load(self) -> InMemoryFeatures:
        """Reads everything into memory."""
        batch = self.batch(slice(0, self.count))
        return InMemoryFeatures(batch.states.to(self._entry.reader.dtype), batch.frames)


class OnTheFlyFeatures:
    """Features that are encoded anew for every batch, in the context ``within`` (see
    ``Extractor.share_front_end``)."""

    location: Location = "recomputed"

    def __init__(
        self,
        extractor: Extractor,
        utterances: Sequence[Utterance],
        within: EncodingContext = no_context,
    ) -> None:
        self.extractor, self.utterances, self.within = extractor, utterances, within
        self.count = len(utterances)

    def batch(self, indices: Indices) -> Batch:
        """Encodes these utterances."""
        with closing(self.read_batches([indices])) as batches:
            return next(batches)[1]

    def read_batches(
        self, order: Iterable[Indices]
    ) -> Generator[tuple[Indices, Batch], None, None]:
        """Yields each of these indices with its batch; the audio of the next ones is read
        meanwhile."""
        batches = ((indices, torch.arange(self.count)[indices].tolist()) for indices in order)
        with closing(
            self.extractor.encode_batches(batches, self.utterances, self.within)
        ) as encoded:
            for indices, states in encoded:
                frames = torch.tensor([item.shape[1] for item in states])
                yield indices, Batch(_to_float32(torch.cat(states, dim=1)), frames)


class FeatureStorage(NamedTuple):
    """Where features may be stored. ``encoder`` is the encoder's fingerprint; without a cache
    nothing is stored on disk."""

    memory_bytes: int = MEMORY_BYTES
    cache: FeatureCache | None = None
    encoder: str = ""


IN_MEMORY = FeatureStorage()
"""The usual amount in memory, nothing on disk."""


def prepare_features(
    extractor: Extractor,
    splits: Mapping[str, Sequence[Utterance]],
    advance: Advance,
    storage: FeatureStorage = IN_MEMORY,
) -> dict[str, Features]:
    """Returns the features of each split, in the order of ``splits``: in memory while they fit,
    else on disk, else recomputed for every batch.

    Means are also stored on disk, where another evaluation of the same encoder can use them. The
    sizes follow from the numbers of frames; nothing is tried out.
    """
    free_bytes = storage.memory_bytes
    features: dict[str, Features] = {}
    for split, utterances in splits.items():
        size_bytes = size_in_bytes(extractor, utterances)
        in_memory = size_bytes <= free_bytes
        # Precomputed features are already stored; frames go to disk only if they exceed memory.
        to_disk = extractor.precomputed is None and (extractor.pooled or not in_memory)
        on_disk = (
            _store_on_disk(extractor, utterances, size_bytes, advance, storage) if to_disk else None
        )
        if in_memory:
            free_bytes -= size_bytes
            features[split] = (
                on_disk.load()
                if on_disk
                else InMemoryFeatures.encode(extractor, utterances, advance)
            )
        elif on_disk:
            features[split] = on_disk
        elif extractor.pooled:
            # Means are small: encoding them for every batch costs more than any amount of memory.
            features[split] = InMemoryFeatures.encode(extractor, utterances, advance)
        else:
            features[split] = OnTheFlyFeatures(extractor, utterances)
            advance(len(utterances))  # nothing to encode ahead
    return features


def size_in_bytes(extractor: Extractor, utterances: Sequence[Utterance]) -> int:
    """Returns how many bytes the features of these utterances take."""
    rows = sum(
        1 if extractor.pooled else frame_count(utterance.samples) for utterance in utterances
    )
    values = rows * extractor.encoder.state_count * extractor.encoder.dim
    return values * extractor.dtype.itemsize


def _store_on_disk(
    extractor: Extractor,
    utterances: Sequence[Utterance],
    size_bytes: int,
    advance: Advance,
    storage: FeatureStorage,
) -> DiskFeatures | None:
    """Returns the features from disk, and writes them there first if they are missing; ``None``
    without a cache or without space in it."""
    cache = storage.cache
    if cache is None:
        return None
    identity: dict[str, Any] = {
        "what": "means" if extractor.pooled else "frames",
        "encoder": storage.encoder,
        "normalised": "layer norm",
        "corpus": extractor.corpus.fingerprint,
        "utterances": fingerprint([utterance.key for utterance in utterances]),
    }
    key = cache.key(identity)
    entry = cache.find(key)
    if entry is not None:
        advance(len(utterances))
    elif cache.make_room(size_bytes):
        with (
            cache.write(key, len(utterances)) as append,
            extractor.share_front_end(utterances) as within,
        ):
            for group, group_states in extractor.encode_groups(utterances, within):
                for index, states in zip(group, group_states, strict=True):
                    append(index, states.transpose(0, 1).flatten(1))  # -> (rows, layers * dim)
                advance(len(group))
        entry = cache.find(key)
    return DiskFeatures(entry, extractor.encoder.state_count, extractor.device) if entry else None
