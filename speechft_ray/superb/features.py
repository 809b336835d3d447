"""What a probe sees of a frozen encoder: layer-normalised hidden states, encoded without any
padding.

An utterance is never padded and shares a batch only with others of exactly its length, so its
features depend on nothing but its samples and the weights (to the last bits of a matrix product).
In s3prl they depend on the batch: the group norm of Base encoders takes padding into its
statistics, and shorter utterances of a batch get a frame of padding (``upstream/interfaces.py``).
Batch size 1 is also how s3prl evaluates most tasks.

Means over frames are float32. Frame states are rounded to float16 wherever they lie, in memory, on
disk or nowhere, so that no number depends on which; normalised states are of the order of one,
which float16 tells apart to 1/1000.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple, Protocol

import torch

from speechft_ray.core.errors import UserError
from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.core.units import FRAME_FIELD_SAMPLES, SAMPLE_RATE_HZ, frame_count
from speechft_ray.speech.batching import group_by_length
from speechft_ray.speech.corpora.base import Corpus, Utterance
from speechft_ray.speech.encoders.base import Encoder
from speechft_ray.speech.features.cache import Entry, FeatureCache
from speechft_ray.speech.features.front_end import GROUP_SECONDS, EncodingContext, SharedFrontEnd
from speechft_ray.speech.heads.featurizer import layer_normalize

MEMORY_BYTES = 1 << 30
"""Features kept in memory by one evaluation: 1 GiB of frames is two hours of a 7 x 192 encoder (50
frames of 2.7 kB a second) or 18 minutes of a Base encoder (13 x 768, 20 kB a frame); of means 27
000 utterances of a Base encoder. What is beyond it lies on disk, and what is beyond the disk's
budget is encoded again whenever it is drawn."""

HEARD_AT_ONCE = 256
"""Recordings taken at once from those heard before: 10 MB of a Base encoder's means."""

Indices = slice | torch.Tensor
"""Utterances by place: a slice with start and stop, or places ``(count,)`` int64."""

Location = Literal["memory", "disk", "nowhere"]

Advance = Callable[[int], None]
"""Told how many more units of work, utterances or updates, are done."""


def _alone(places: Sequence[int]) -> AbstractContextManager[None]:
    """Encodes within nothing: nobody else has a use for the front end's output."""
    return nullcontext()


class Batch(NamedTuple):
    """States of some utterances, one after the other without padding.

    ``states``: ``(layers, rows, dim)`` float32. ``frames``: rows of each utterance ``(batch,)``,
    int64, on the CPU.
    """

    states: torch.Tensor
    frames: torch.Tensor


class Features(Protocol):
    """The features of a list of utterances."""

    count: int
    location: Location

    def batch(self, chosen: Indices) -> Batch:
        """Returns the features of the chosen utterances, in the chosen order."""
        ...


class PrecomputedFeatures(NamedTuple):
    """Features of recordings, and the place of each by its content (``Corpus.audio_ids``)."""

    source: Features
    places: Mapping[str, int]


class Extractor:
    """A frozen encoder as a function from utterances to their states.

    ``pooled`` keeps only the mean over frames of each normalised state. Puts the encoder into eval
    mode. ``seconds`` is the time spent so far, ``encoded`` the utterances that went through the
    encoder. ``front_ends`` spares it the work that another encoder with the same front end has
    done, ``heard`` that of recordings which were encoded for several corpora at once.
    """

    def __init__(
        self,
        encoder: Encoder,
        corpus: Corpus,
        device: torch.device,
        pooled: bool,
        front_ends: SharedFrontEnd | None = None,
        precomputed: PrecomputedFeatures | None = None,
    ) -> None:
        self.encoder, self.corpus, self.device, self.pooled, self.front_ends = (
            encoder,
            corpus,
            device,
            pooled,
            front_ends,
        )
        self.precomputed = precomputed
        self.seconds, self.encoded = 0.0, 0
        encoder.module().to(device).eval()

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the states."""
        return torch.float32 if self.pooled else torch.float16

    def __call__(
        self, utterances: Sequence[Utterance], within: EncodingContext = _alone
    ) -> list[torch.Tensor]:
        """Returns ``(layers, rows, dim)`` of each utterance, in their order; one row when pooled.

        Raises ``UserError`` for an utterance shorter than one frame.
        """
        found: dict[int, torch.Tensor] = {}
        for group, states in self.groups(utterances, within):
            found.update(zip(group, states, strict=True))
        return [found[index] for index in range(len(utterances))]

    def groups(
        self, utterances: Sequence[Utterance], within: EncodingContext = _alone
    ) -> Iterator[tuple[list[int], list[torch.Tensor]]]:
        """Yields places of utterances with their states, group by group of equal length, the
        longest first.

        ``within``: what to encode each group within, from ``caches``.
        """
        known = self._known(utterances)
        for start in range(0, len(known), HEARD_AT_ONCE):
            some = known[start : start + HEARD_AT_ONCE]
            yield [index for index, _ in some], self._heard_states([place for _, place in some])
        rest = sorted(set(range(len(utterances))) - {index for index, _ in known})
        for members in group_by_length(
            [utterances[index].samples for index in rest], GROUP_SECONDS
        ):
            group = [rest[member] for member in members]
            began = time.perf_counter()
            with within(group):
                states = self._encode([utterances[index] for index in group])
            self.encoded += len(group)
            self.seconds += time.perf_counter() - began
            yield group, states

    def _known(self, utterances: Sequence[Utterance]) -> list[tuple[int, int]]:
        """Utterances by index whose recordings were heard before, with their places there."""
        if self.precomputed is None:
            return []
        places = [
            self.precomputed.places.get(self.corpus.audio_ids.get(utterance.key, ""))
            for utterance in utterances
        ]
        return [(index, place) for index, place in enumerate(places) if place is not None]

    def _heard_states(self, places: Sequence[int]) -> list[torch.Tensor]:
        assert self.precomputed is not None
        batch = self.precomputed.source.batch(torch.tensor(places))
        return list(torch.split(batch.states.to(self.dtype), batch.frames.tolist(), dim=1))

    def share_front_end(
        self, utterances: Sequence[Utterance]
    ) -> AbstractContextManager[EncodingContext]:
        """Yields what to encode these utterances within, each exactly once, so that encoders share
        their front end."""
        return self.front_ends.reuse(utterances) if self.front_ends else nullcontext(_alone)

    @torch.no_grad()
    def _encode(self, group: Sequence[Utterance]) -> list[torch.Tensor]:
        encoded = self.encoder.hidden_states([self._wave(utterance) for utterance in group])
        states = layer_normalize(
            torch.stack(encoded.states)[:, :, : int(encoded.frames[0])].float()
        )  # (layers, batch, frames, dim)
        if self.pooled:
            states = states.mean(dim=2, keepdim=True)  # -> (layers, batch, 1, dim)
        return list(states.to(self.dtype).unbind(dim=1))

    def _wave(self, utterance: Utterance) -> torch.Tensor:
        wave = torch.from_numpy(self.corpus.read(utterance)).to(self.device)
        if len(wave) < FRAME_FIELD_SAMPLES:
            raise UserError(
                f"the utterance `{utterance.key}` of the corpus `{self.corpus.name}` has {len(wave)} samples, less than one "
                f"frame ({FRAME_FIELD_SAMPLES} samples at {SAMPLE_RATE_HZ} Hz): leave it out."
            )
        return wave


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
    def of(
        cls, extract: Extractor, utterances: Sequence[Utterance], advance: Advance
    ) -> InMemoryFeatures:
        """Encodes all utterances."""
        frames = torch.tensor(
            [1 if extract.pooled else frame_count(utterance.samples) for utterance in utterances]
        )
        stretches = [
            slice(end - count, end)
            for end, count in zip(frames.cumsum(0).tolist(), frames.tolist(), strict=True)
        ]
        layers, dim = extract.encoder.state_count, extract.encoder.dim
        packed = torch.empty(
            layers, int(frames.sum()), dim, dtype=extract.dtype, device=extract.device
        )
        with extract.share_front_end(utterances) as within:
            for group, found in extract.groups(utterances, within):
                for place, states in zip(group, found, strict=True):
                    packed[:, stretches[place]] = states
                advance(len(group))
        return cls(packed, frames)

    def batch(self, chosen: Indices) -> Batch:
        """Returns the chosen features; a slice of means shares the memory of the whole."""
        frames = self.frames[chosen]
        if isinstance(chosen, slice):
            first, last = int(self._starts[chosen.start]), int(self._ends[chosen.stop - 1])
            return Batch(_wide(self.states[:, first:last]), frames)
        # Row r of utterance u lies at start(u) + r; rows that precede u in the batch are taken off
        # the running count.
        offsets = torch.repeat_interleave(
            self._starts[chosen] - (frames.cumsum(0) - frames), frames
        )
        rows = offsets + torch.arange(len(offsets))
        return Batch(_wide(self.states.index_select(1, rows.to(self.states.device))), frames)


def _wide(states: torch.Tensor) -> torch.Tensor:
    return states.float() if states.dtype is torch.float16 else states


class DiskFeatures:
    """Features in a file, of which only what is taken comes into memory."""

    location: Location = "disk"

    def __init__(self, entry: Entry, layers: int, device: torch.device) -> None:
        self._entry, self._layers, self._device = entry, layers, device
        self._frames = torch.tensor(entry.counts)
        self.count = len(entry.counts)

    def batch(self, chosen: Indices) -> Batch:
        """Reads the chosen features."""
        places = torch.arange(self.count)[chosen]
        rows = torch.unflatten(
            self._entry.rows(places.tolist()), 1, (self._layers, -1)
        )  # (rows, layers, dim)
        return Batch(
            _wide(rows.to(self._device).transpose(0, 1)).contiguous(), self._frames[places]
        )

    def kept(self) -> InMemoryFeatures:
        """Reads everything into memory."""
        batch = Batch(*self.batch(slice(0, self.count)))
        dtype = self._entry.reader.dtype
        return InMemoryFeatures(batch.states.to(dtype), batch.frames)


class OnTheFlyFeatures:
    """Features that are encoded whenever they are taken, within ``within`` (see
    ``Extractor.share_front_end``)."""

    location: Location = "nowhere"

    def __init__(
        self, extract: Extractor, utterances: Sequence[Utterance], within: EncodingContext = _alone
    ) -> None:
        self.extract, self.utterances, self.within = extract, utterances, within
        self.count = len(utterances)

    def batch(self, chosen: Indices) -> Batch:
        """Encodes the chosen utterances."""
        places = torch.arange(self.count)[chosen].tolist()
        utterances = [self.utterances[place] for place in places]
        found = self.extract(
            utterances, lambda group: self.within([places[index] for index in group])
        )
        return Batch(
            _wide(torch.cat(found, dim=1)), torch.tensor([states.shape[1] for states in found])
        )


class FeatureStorage(NamedTuple):
    """Where features may lie. ``encoder`` is the fingerprint of the encoder; without a cache there
    is no disk."""

    memory_bytes: int = MEMORY_BYTES
    cache: FeatureCache | None = None
    encoder: str = ""


IN_MEMORY = FeatureStorage()
"""As much in memory as is usual, nothing on disk."""


def prepare_features(
    extract: Extractor,
    splits: Mapping[str, Sequence[Utterance]],
    advance: Advance,
    storage: FeatureStorage = IN_MEMORY,
) -> dict[str, Features]:
    """Returns the features of each split, in the order of ``splits``: in memory while they fit,
    else on disk, else encoded.

    Means go to disk as well, where another evaluation of the same encoder finds them. Their sizes
    follow from the numbers of frames; nothing is tried out.
    """
    left = storage.memory_bytes
    found: dict[str, Features] = {}
    for split, utterances in splits.items():
        size_bytes = size_in_bytes(extract, utterances)
        in_memory = size_bytes <= left
        to_disk = extract.precomputed is None and (
            extract.pooled or not in_memory
        )  # what was heard lies there already
        filed = _filed(extract, utterances, size_bytes, advance, storage) if to_disk else None
        if in_memory:
            left -= size_bytes
            found[split] = (
                filed.kept() if filed else InMemoryFeatures.of(extract, utterances, advance)
            )
        elif filed or not extract.pooled:
            found[split] = filed or OnTheFlyFeatures(extract, utterances)
            if not filed:
                advance(len(utterances))  # nothing to do ahead
        else:  # means are small, and encoding them anew for every update is worse than any amount of memory
            found[split] = InMemoryFeatures.of(extract, utterances, advance)
    return found


def size_in_bytes(extract: Extractor, utterances: Sequence[Utterance]) -> int:
    """Returns how many bytes the features of these utterances take."""
    rows = sum(1 if extract.pooled else frame_count(utterance.samples) for utterance in utterances)
    return rows * extract.encoder.state_count * extract.encoder.dim * extract.dtype.itemsize


def _filed(
    extract: Extractor,
    utterances: Sequence[Utterance],
    size_bytes: int,
    advance: Advance,
    storage: FeatureStorage,
) -> DiskFeatures | None:
    """Returns the features from disk, after putting them there if need be; ``None`` when there is
    no disk or no room."""
    cache, layers = storage.cache, extract.encoder.state_count
    if cache is None:
        return None
    identity: dict[str, Any] = {
        "what": "means" if extract.pooled else "frames",
        "encoder": storage.encoder,
        "normalised": "layer norm",
        "corpus": extract.corpus.fingerprint,
        "utterances": fingerprint([utterance.key for utterance in utterances]),
    }
    key = cache.key(identity)
    entry = cache.find(key)
    if entry is not None:
        advance(len(utterances))
    elif cache.make_room(size_bytes):
        with (
            cache.write(key, len(utterances)) as append,
            extract.share_front_end(utterances) as within,
        ):
            for group, found in extract.groups(utterances, within):
                for place, states in zip(group, found, strict=True):
                    append(place, states.transpose(0, 1).flatten(1))  # -> (rows, layers * dim)
                advance(len(group))
        entry = cache.find(key)
    return DiskFeatures(entry, layers, extract.device) if entry else None
