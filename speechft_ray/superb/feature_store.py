"""Stores the features of a corpus on disk, in shards that the tasks of an encoder share.

A shard is an entry of the feature cache with half an hour of a split. It is published when it is
complete, so that a job that was killed keeps all shards but one. Its key names the recordings in
it, not the task that needs them.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch

from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.core.specs import FeatureForm
from speechft_ray.core.units import frame_count
from speechft_ray.speech.corpora.base import Utterance
from speechft_ray.speech.features.cache import Entry, FeatureCache
from speechft_ray.speech.features.rows import allow_open_files
from speechft_ray.speech.heads.featurizer import Basis
from speechft_ray.superb.extractor import Advance, Extractor
from speechft_ray.superb.feature_forms import CompactForm, ExactForm, Form, Int8Form, fit_basis
from speechft_ray.superb.storage_plan import (
    SHARD_FRAMES,
    Allotment,
    allot,
    cut_shards,
    list_shared,
)

MEMORY_BYTES = 1 << 30
"""Features that one evaluation holds in memory: 1 GiB of exact frames is two hours of a 7 x 192
encoder (50 frames of 2.7 kB a second) or 18 minutes of a Base encoder (13 x 768, 20 kB a frame); of
means, 27 000 utterances of a Base encoder. What exceeds it stays on disk, and what exceeds the
disk's budget is encoded again for every batch."""

SAMPLE_FRAMES = 20_000
"""Training frames that the basis of ``compact`` is fitted on: twice as many as a frame of a 12 x
768 encoder has values."""


class FeatureStorage(NamedTuple):
    """Where and in which form features are stored. ``encoder`` is the encoder's fingerprint;
    without a cache nothing is stored on disk. ``form`` and ``rank`` are those of ``EvalSpec``."""

    memory_bytes: int = MEMORY_BYTES
    cache: FeatureCache | None = None
    encoder: str = ""
    form: FeatureForm = "exact"
    rank: float | None = None
    shard_frames: int = SHARD_FRAMES


IN_MEMORY = FeatureStorage()
"""The usual amount in memory, nothing on disk."""


class FeatureStore:
    """The features of an encoder on the utterances of an evaluation, as far as the cache holds
    them.

    ``form`` is how they are stored. Of the ``count`` utterances the first ``stored_count`` fit.
    ``recomputed_count`` utterances are encoded for every batch of training or validation.
    ``protected``: keys of its entries in the cache.
    """

    def __init__(
        self,
        extractor: Extractor,
        splits: Mapping[str, Sequence[Utterance]],
        storage: FeatureStorage,
    ) -> None:
        """``splits``: all utterances that the evaluation needs, those that are read most often
        first. Fits the basis of ``compact`` where it is missing, for which a sample is encoded."""
        self.extractor, self.storage = extractor, storage
        # Precomputed features are stored already, by those who computed them.
        self._cache = storage.cache if extractor.precomputed is None else None
        self._lists: list[Sequence[Utterance]] = []
        self._starts: list[int] = []
        self._places: dict[str, dict[str, int]] = {}  # by split and key
        self._shards: list[range] = []
        for utterances in splits.values():
            self._add(list_shared(extractor.corpus, utterances))
        self._entries: dict[int, Entry | None] = {}
        self._rows_of_sample: dict[int, torch.Tensor] = {}
        self.form, basis_key = self._make_form()
        allotment = self._allot()
        self.stored_count = allotment.stored
        self.recomputed_count = 0
        self._front_ends = allotment.front_ends
        self.protected: frozenset[str] = frozenset()
        if self._cache:
            parts = [self._part_on_disk(shard) for shard in self._shards]
            self.protected = frozenset([basis_key, *(self._key(part) for part in parts if part)])
            self._cache.protected = self.protected

    @property
    def count(self) -> int:
        """The number of all utterances."""
        return sum(map(len, self._lists))

    @property
    def utterances(self) -> Iterator[Utterance]:
        """All utterances in the order of their places."""
        return chain.from_iterable(self._lists)

    def _utterance(self, place: int) -> Utterance:
        number = bisect_right(self._starts, place) - 1
        return self._lists[number][place - self._starts[number]]

    def _add(self, utterances: Sequence[Utterance]) -> None:
        """Adds the utterances of a split that are not there yet, in shards of their own. The
        sequence itself is held, which may make utterances when they are asked for."""
        start = self.count
        frames: list[int] = []
        fresh: list[int] = []
        for index, item in enumerate(utterances):
            of_split = self._places.setdefault(item.split, {})
            if item.key not in of_split:
                of_split[item.key] = start + len(fresh)
                frames.append(frame_count(item.samples))
                fresh.append(index)
        if not fresh:
            return
        is_new = len(fresh) == len(utterances)
        self._lists.append(utterances if is_new else [utterances[index] for index in fresh])
        self._starts.append(start)
        self._shards += [
            range(start + shard.start, start + shard.stop)
            for shard in cut_shards(frames, self.storage.shard_frames)
        ]

    def _allot(self) -> Allotment:
        """Returns what the budget holds; without a cache of features the front ends alone."""
        front_end, basis = self.extractor.front_end, self.form.basis
        front_end_bytes = [
            frame_count(item.samples) * (front_end.frame_bytes if front_end else 0)
            for item in self.utterances
        ]
        if self._cache is None:
            budget_bytes = front_end.budget_bytes if front_end else 0
            nothing = [0] * self.count
            return allot(nothing, front_end_bytes, budget_bytes)._replace(stored=0)
        basis_bytes = sum(tensor.nbytes for tensor in basis) if basis else 0
        return allot(
            [self.count_bytes(item) for item in self.utterances],
            front_end_bytes,
            max(0, self._cache.budget_bytes - basis_bytes),
        )

    def count_rows(self, utterance: Utterance) -> int:
        """Returns the rows of an utterance: its frames, or one mean."""
        return 1 if self.extractor.pooled else frame_count(utterance.samples)

    def count_bytes(self, utterance: Utterance) -> int:
        """Returns the bytes of an utterance's rows."""
        return self.count_rows(utterance) * self.form.width * self.form.dtype.itemsize

    # What is on disk

    def locate(
        self, utterances: Sequence[Utterance], advance: Advance
    ) -> list[tuple[Entry, int] | None]:
        """Returns the shard of each utterance and its index there; ``None`` where it is not stored.

        Shards that are missing are encoded and written. ``advance`` counts the utterances that are
        then stored. The files of the shards stay open, so that another process may remove them,
        until ``close_files``.
        """
        allow_open_files(len(self._shards))
        places = self.list_places(utterances)
        times = Counter(places)
        located: dict[int, tuple[Entry, int]] = {}
        for number, shard in enumerate(self._shards):
            part = self._part_on_disk(shard)
            if not any(place in times for place in part):
                continue
            if number not in self._entries:
                self._entries[number] = self._find_or_write(part)
            entry = self._entries[number]
            if entry is not None:
                located |= {place: (entry, index) for index, place in enumerate(part)}
                advance(sum(times[place] for place in part))
        return [located.get(place) for place in places]

    def close_files(self, located: Iterable[tuple[Entry, int] | None]) -> None:
        """Lets go of the shards of ``locate``: their files are closed with the last reader."""
        closed = {id(place[0]) for place in located if place}
        self._entries = {
            number: entry for number, entry in self._entries.items() if id(entry) not in closed
        }

    def _part_on_disk(self, shard: range) -> range:
        return range(shard.start, min(shard.stop, max(shard.start, self.stored_count)))

    def _key(self, part: range) -> str:
        return FeatureCache.key(
            {
                "what": "means" if self.extractor.pooled else "frames",
                **self._encoder_identity(),
                **self.form.identity,
                "utterances": fingerprint([self._identify(place) for place in part]),
            }
        )

    def _encoder_identity(self) -> dict[str, Any]:
        return {"encoder": self.storage.encoder, "normalised": "layer norm"}

    def _identify(self, place: int) -> list[str | int]:
        """Returns the identity of a recording, the same in all corpora that have it and say so."""
        corpus, utterance = self.extractor.corpus, self._utterance(place)
        audio_id = corpus.audio_ids.get(utterance.key)
        whose = [audio_id] if audio_id else [corpus.fingerprint, utterance.key]
        changed = [corpus.files.transform] if corpus.files and corpus.files.transform else []
        return [*whose, utterance.samples, *changed]

    def _find_or_write(self, part: range) -> Entry | None:
        """Returns a shard; ``None`` where it is missing and there is no room for it."""
        cache = self._cache
        if cache is None:
            return None
        key = self._key(part)
        entry = cache.find(key)
        size_bytes = sum(self.count_bytes(self._utterance(place)) for place in part)
        if entry is None and cache.make_room(size_bytes):
            with cache.write(key, len(part)) as append:
                for place, rows in self.encode(part):
                    append(place - part.start, rows)
            entry = cache.find(key, verify=False)
        return entry

    # What is encoded

    def encode(self, places: Sequence[int]) -> Iterator[tuple[int, torch.Tensor]]:
        """Yields places and rows of utterances, which are encoded in the best order."""
        sample = [place for place in places if place in self._rows_of_sample]
        yield from ((place, self._rows_of_sample[place]) for place in sample)
        rest = [place for place in places if place not in self._rows_of_sample]
        for stores_front_end in (True, False):
            selected = [place for place in rest if (place in self._front_ends) == stores_front_end]
            if selected:
                for place, states in self._encode_states(selected, stores_front_end):
                    yield place, self.form.pack(states)

    def _encode_states(
        self, places: Sequence[int], stores_front_end: bool
    ) -> Iterator[tuple[int, torch.Tensor]]:
        utterances = [self._utterance(place) for place in places]
        with self.extractor.share_front_end(utterances, stores=stores_front_end) as within:
            for group, group_states in self.extractor.encode_groups(utterances, within):
                yield from zip((places[index] for index in group), group_states, strict=True)

    def list_places(self, utterances: Sequence[Utterance]) -> list[int]:
        """Returns the places of utterances, for ``encode``."""
        return [self._places[item.split][item.key] for item in utterances]

    def open_front_ends(self, utterances: Sequence[Utterance]) -> dict[int, tuple[Entry, int]]:
        """Returns the stored output of the front end by index of these utterances, as far as the
        budget holds it; it is computed where it is missing."""
        front_end, extractor = self.extractor.front_end, self.extractor
        if front_end is None:
            return {}
        indices = {place: index for index, place in enumerate(self.list_places(utterances))}
        opened: dict[int, tuple[Entry, int]] = {}
        for shard in self._shards:
            part = [place for place in shard if place in self._front_ends and place in indices]
            if not part:
                continue
            entry = front_end.load_or_compute(
                extractor.encoder,
                [self._utterance(place) for place in part],
                extractor.read_wave,
                lambda _: None,
                extractor.readers,
                extractor.rule,
            )
            if entry is not None:
                opened |= {indices[place]: (entry, own) for own, place in enumerate(part)}
        return opened

    # The basis of the compact form

    def _make_form(self) -> tuple[Form, str]:
        """Returns the form, and the key of its basis if it has one."""
        encoder = self.extractor.encoder
        if self.extractor.pooled or self.storage.form in ("exact", "auto"):
            return ExactForm(encoder.state_count, encoder.dim, self.extractor.dtype), ""
        if self.storage.form == "int8":
            return Int8Form(encoder.state_count, encoder.dim), ""
        assert self.storage.rank is not None
        sample = self._select_sample()
        key = FeatureCache.key(
            {
                "what": "basis",
                "version": 2,  # 2: at most half as many directions as frames
                **self._encoder_identity(),
                "rank": self.storage.rank,
                "utterances": fingerprint([self._identify(place) for place in sample]),
            }
        )
        basis = self._find_basis(key)
        if basis is not None:
            return CompactForm(basis), key
        states = dict(self._encode_states(sample, stores_front_end=True))
        basis = fit_basis([states[place] for place in sample], self.storage.rank)
        form = CompactForm(self._publish_basis(key, basis))
        self._rows_of_sample = {place: form.pack(of_one) for place, of_one in states.items()}
        return form, key

    def _select_sample(self) -> list[int]:
        """Returns training utterances in an order that follows from their keys, up to
        ``SAMPLE_FRAMES``."""
        first = self._utterance(0).split
        hashes = {
            place: _hash_key(item)
            for place, item in enumerate(self.utterances)
            if item.split == first
        }
        training = sorted(hashes, key=hashes.__getitem__)
        sample, frames = [], 0
        for place in training:
            if frames >= SAMPLE_FRAMES:
                break
            sample.append(place)
            frames += frame_count(self._utterance(place).samples)
        return sample

    def _find_basis(self, key: str) -> Basis | None:
        entry = self._cache.find(key) if self._cache else None
        if entry is None:
            return None
        encoder, device = self.extractor.encoder, self.extractor.device
        shape = (-1, encoder.state_count, encoder.dim)
        offset, vectors = (entry.rows([index]).to(device).view(shape) for index in (0, 1))
        return Basis(vectors, offset[0])

    def _publish_basis(self, key: str, basis: Basis) -> Basis:
        """Returns the basis that the cache has in the end: of two workers one is first."""
        if self._cache and self._cache.make_room(sum(tensor.nbytes for tensor in basis)):
            with self._cache.write(key, 2) as append:
                append(0, basis.offset.flatten()[None])
                append(1, basis.vectors.flatten(1))
            return self._find_basis(key) or basis
        return basis


def _hash_key(utterance: Utterance) -> str:
    return hashlib.sha256(f"basis {utterance.key}".encode()).hexdigest()
