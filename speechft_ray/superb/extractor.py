"""Encodes utterances: layer-normalised hidden states of a frozen encoder.

The features of an utterance depend on nothing but its samples and the weights, to the last bits of
a matrix product: padding reaches no valid frame (``Encoder.hidden_states``). In s3prl they depend
on the batch: the group norm of Base encoders takes padding into its statistics, and shorter
utterances of a batch get a frame of padding (``upstream/interfaces.py``). Batch size 1 is also how
s3prl evaluates most tasks. Utterances share batches by a rule for the device
(``speech.batching``).

Means over frames are float32. Frame states are rounded to float16 wherever they are stored
(``superb.features``), in memory, on disk or not at all, so that no number depends on the place, but
last bits depend on the batch; normalised states are of the order of one, which float16 resolves to
1/1000.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Literal, NamedTuple, Protocol, TypeVar

import torch

from speechft_ray.core.errors import GpuMemoryError, UserError
from speechft_ray.core.units import FRAME_FIELD_SAMPLES, SAMPLE_RATE_HZ
from speechft_ray.speech.batching import BatchRule, choose_rule, make_batches
from speechft_ray.speech.corpora.base import Corpus, Utterance
from speechft_ray.speech.encoders.base import Encoder
from speechft_ray.speech.features.front_end import EncodingContext, SharedFrontEnd
from speechft_ray.speech.gpu_memory import is_out_of_memory
from speechft_ray.speech.heads.featurizer import Basis, layer_normalize
from speechft_ray.speech.prefetch import count_readers, pin, read_groups, wave_bytes

PRECOMPUTED_AT_ONCE = 256
"""Recordings read at once from precomputed features: 10 MB of a Base encoder's means."""

Indices = slice | torch.Tensor
"""Utterances by index: a slice with start and stop, or indices ``(count,)`` int64."""

Location = Literal["memory", "disk", "recomputed", "mixed"]
"""Where features are; ``mixed``: in several of these places."""

Key = TypeVar("Key")

Advance = Callable[[int], None]
"""Called with the number of further work units, utterances or updates, that are done."""


NO_CONTEXT = EncodingContext(lambda indices: nullcontext())
"""Nothing else uses the front end's output."""


class Batch(NamedTuple):
    """States of some utterances, one after the other without padding.

    ``states``: ``(layers, rows, dim)`` float32; with a ``basis``, coefficients ``(rows, rank)``.
    ``frames``: rows of each utterance ``(batch,)``, int64, on the CPU.
    """

    states: torch.Tensor
    frames: torch.Tensor
    basis: Basis | None = None

    def restore(self) -> torch.Tensor:
        """Returns ``(layers, rows, dim)`` with or without a basis."""
        return self.states if self.basis is None else self.basis.restore(self.states)


class Features(Protocol):
    """The features of a list of utterances."""

    count: int
    location: Location

    def batch(self, indices: Indices) -> Batch:
        """Returns the features of these utterances, in this order."""
        ...

    def read_batches(
        self, order: Iterable[Indices]
    ) -> Generator[tuple[Indices, Batch], None, None]:
        """Yields each of these indices with its batch, the same as that of ``batch``.

        ``order`` may be endless. Where something is read from files, ``order`` is iterated ahead of
        the batches, and the next ones are read meanwhile.
        """
        ...


def iterate_batches(features: Features, at_once: int, first: int = 0) -> Iterator[Batch]:
    """Yields the utterances from ``first`` on in their order, ``at_once`` in a batch; the last one
    may be smaller."""
    order = (
        slice(start, min(start + at_once, features.count))
        for start in range(first, features.count, at_once)
    )
    with closing(features.read_batches(order)) as batches:
        for _, batch in batches:
            yield batch


class PrecomputedFeatures(NamedTuple):
    """Features of recordings, and the index of each by its content (``Corpus.audio_ids``)."""

    features: Features
    indices: Mapping[str, int]
    encoded_seconds: float = 0.0
    """Of audio that went through the encoder for them."""


class Extractor:
    """Maps utterances to the normalised hidden states of a frozen encoder.

    ``pooled``: returns only the mean over frames of each normalised state. ``front_end`` reuses the
    front-end output of another encoder with the same front end; ``precomputed`` reuses the features
    of recordings that were encoded for several corpora at once. ``rule`` is that of the device
    unless it is set. The constructor puts the encoder into eval mode. ``seconds`` is the time so
    far of encoding and of waiting for audio, ``encoded_count`` the number of utterances that went
    through the encoder, ``encoded_seconds`` that of their audio; ``readers`` is the number of
    threads that read audio ahead (``speech.prefetch``).
    """

    def __init__(
        self,
        encoder: Encoder,
        corpus: Corpus,
        device: torch.device,
        pooled: bool,
        front_end: SharedFrontEnd | None = None,
        precomputed: PrecomputedFeatures | None = None,
        rule: BatchRule | None = None,
    ) -> None:
        self.encoder, self.corpus, self.device, self.pooled = encoder, corpus, device, pooled
        self.front_end, self.precomputed = front_end, precomputed
        self.rule = rule or choose_rule(device.type)
        self.seconds, self.encoded_count, self.encoded_seconds = 0.0, 0, 0.0
        self.readers = count_readers(device, corpus)
        self._too_many_samples = math.inf
        """Fewest padded samples of a batch for which the memory of the GPU was too small."""
        encoder.module().to(device).eval()

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the states."""
        return torch.float32 if self.pooled else torch.float16

    def __call__(
        self, utterances: Sequence[Utterance], within: EncodingContext = NO_CONTEXT
    ) -> list[torch.Tensor]:
        """Returns ``(layers, rows, dim)`` of each utterance, in their order; one row when pooled.

        Raises ``UserError`` for an utterance shorter than one frame.
        """
        states_by_index: dict[int, torch.Tensor] = {}
        for group, states in self.encode_groups(utterances, within):
            states_by_index.update(zip(group, states, strict=True))
        return [states_by_index[index] for index in range(len(utterances))]

    def encode_groups(
        self, utterances: Sequence[Utterance], within: EncodingContext = NO_CONTEXT
    ) -> Iterator[tuple[list[int], list[torch.Tensor]]]:
        """Yields indices of utterances with their states, batch by batch, the longest first.

        ``within``: the context in which each group is encoded, from ``share_front_end``.
        """
        # Precomputed recordings first: they are only read.
        precomputed = self._find_precomputed(utterances)
        for start in range(0, len(precomputed), PRECOMPUTED_AT_ONCE):
            pairs = precomputed[start : start + PRECOMPUTED_AT_ONCE]
            yield [index for index, _ in pairs], self._read_precomputed([row for _, row in pairs])
        # All others go through the encoder, a batch at a time.
        rest = sorted(set(range(len(utterances))) - {index for index, _ in precomputed})
        with closing(self._encode_ahead([(None, rest)], utterances, within)) as groups:
            for _, places, states in groups:
                yield [rest[place] for place in places], states

    def encode_batches(
        self,
        batches: Iterable[tuple[Key, list[int]]],
        utterances: Sequence[Utterance],
        within: EncodingContext = NO_CONTEXT,
    ) -> Generator[tuple[Key, list[torch.Tensor]], None, None]:
        """Yields the key of each batch with the states of its utterances, as calling the extractor
        with them does.

        A batch lists indices of ``utterances``. ``batches`` may be endless; it is iterated ahead,
        and the audio of the next ones is read meanwhile.
        """
        by_place: dict[int, torch.Tensor] = {}
        with closing(
            self._encode_ahead(
                (((key, len(batch)), batch) for key, batch in batches), utterances, within
            )
        ) as groups:
            for (key, count), places, states in groups:
                by_place.update(zip(places, states, strict=True))
                if len(by_place) == count:
                    yield key, [by_place[place] for place in range(count)]
                    by_place = {}

    def _encode_ahead(
        self,
        batches: Iterable[tuple[Key, list[int]]],
        utterances: Sequence[Utterance],
        within: EncodingContext,
    ) -> Generator[tuple[Key, list[int], list[torch.Tensor]], None, None]:
        """Yields the key, the places in its batch and the states of every part of each batch that
        is encoded at once."""

        def list_groups() -> Iterator[
            tuple[tuple[Key, list[int], list[int]], list[tuple[Utterance, bool]]]
        ]:
            for key, batch in batches:
                members = [utterances[index] for index in batch]
                samples = [utterance.samples for utterance in members]
                for places in make_batches(samples, self.rule):
                    indices = [batch[place] for place in places]
                    is_read = within.needs_audio(indices)
                    yield (key, places, indices), [(members[place], is_read) for place in places]

        def read(item: tuple[Utterance, bool]) -> torch.Tensor:
            utterance, is_read = item
            return self.read_wave(utterance) if is_read else torch.zeros(utterance.samples)

        groups = read_groups(list_groups(), read, lambda item: wave_bytes(item[0]), self.readers)
        began = time.perf_counter()
        with closing(groups):
            for (key, places, indices), waves in groups:
                states = self._encode_group(indices, waves, within)
                self.encoded_count += len(indices)
                samples = sum(utterances[index].samples for index in indices)
                self.encoded_seconds += samples / SAMPLE_RATE_HZ
                self.seconds += time.perf_counter() - began
                yield key, places, states
                began = time.perf_counter()

    def _find_precomputed(self, utterances: Sequence[Utterance]) -> list[tuple[int, int]]:
        """Returns the indices of utterances with precomputed features, each with its index
        there."""
        if self.precomputed is None:
            return []
        rows = [
            self.precomputed.indices.get(self.corpus.audio_ids.get(utterance.key, ""))
            for utterance in utterances
        ]
        return [(index, row) for index, row in enumerate(rows) if row is not None]

    def _read_precomputed(self, indices: Sequence[int]) -> list[torch.Tensor]:
        assert self.precomputed is not None
        batch = self.precomputed.features.batch(torch.tensor(indices))
        return list(torch.split(batch.states.to(self.dtype), batch.frames.tolist(), dim=1))

    def share_front_end(
        self, utterances: Sequence[Utterance], *, stores: bool = True
    ) -> AbstractContextManager[EncodingContext]:
        """Yields the context in which to encode these utterances, each exactly once, so that
        encoders share their front end. Its output is stored if ``stores``."""
        if self.front_end is None:
            return nullcontext(NO_CONTEXT)
        return self.front_end.reuse(utterances, stores=stores)

    def _encode_group(
        self, indices: Sequence[int], waves: Sequence[torch.Tensor], within: EncodingContext
    ) -> list[torch.Tensor]:
        """Encodes a batch; one that is too large for the memory of a GPU, and all later ones of its
        size, in halves. Raises ``GpuMemoryError`` where one utterance is."""
        samples = max(map(len, waves)) * len(waves)
        if samples < self._too_many_samples or len(waves) == 1:
            try:
                with within.enter(indices):
                    return self._encode(waves)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if len(waves) == 1:
                    raise GpuMemoryError(
                        "the GPU's memory is too small for one recording of "
                        f"{samples / SAMPLE_RATE_HZ:.0f} s: cut the recording, take a larger GPU, "
                        "or give the evaluation a larger share of one (`resources:`)."
                    ) from error
                self._too_many_samples = samples
            # Not in `except`: there the traceback holds what the batch has on the GPU.
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        half = len(waves) // 2
        return [
            *self._encode_group(indices[:half], waves[:half], within),
            *self._encode_group(indices[half:], waves[half:], within),
        ]

    @torch.no_grad()
    def _encode(self, waves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        encoded = self.encoder.hidden_states(
            [wave.to(self.device, non_blocking=True) for wave in waves]
        )
        frames = encoded.frames.tolist()
        states = layer_normalize(
            torch.stack(encoded.states)[:, :, : max(frames)].float()
        )  # (layers, batch, frames, dim)
        if not self.pooled:
            by_utterance = states.to(self.dtype).unbind(dim=1)
            return [item[:, :count] for item, count in zip(by_utterance, frames, strict=True)]
        if len(set(frames)) == 1:
            means = states.mean(dim=2, keepdim=True)  # -> (layers, batch, 1, dim)
        else:
            counts = encoded.frames.to(states.device)[:, None]
            padding = torch.arange(states.shape[2], device=states.device) >= counts
            sums = states.masked_fill_(padding[:, :, None], 0.0).sum(dim=2, keepdim=True)
            means = sums / counts[:, :, None]
        return list(means.to(self.dtype).unbind(dim=1))

    def read_wave(self, utterance: Utterance) -> torch.Tensor:
        """Reads the audio of an utterance into memory of the CPU. Runs in a reading thread."""
        wave = torch.from_numpy(self.corpus.read(utterance))
        if len(wave) < FRAME_FIELD_SAMPLES:
            raise UserError(
                f"the utterance `{utterance.key}` of the corpus `{self.corpus.name}` has "
                f"{len(wave)} samples, less than one frame ({FRAME_FIELD_SAMPLES} samples at "
                f"{SAMPLE_RATE_HZ} Hz): leave it out."
            )
        return pin(wave, self.device)
