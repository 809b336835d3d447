"""Reads the utterances of a batch and encodes them.

Stable fine-tuning freezes the front end. Its output is therefore read from the disk cache that
evaluations use, or computed without gradient. Padding reaches no valid frame, in the front end and
behind it (s3prl's padding reaches every frame of a Base encoder). On a GPU the front end runs on
padded batches; on a CPU, which they keep no busier, on one utterance after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from speechft_ray.core.specs import FinetuneSpec, Precision
from speechft_ray.finetuning.batches import AudioCache, crop
from speechft_ray.finetuning.data import Example, ObjectiveData, max_crop_samples
from speechft_ray.speech.batching import choose_rule, make_batches
from speechft_ray.speech.corpora.base import Utterance
from speechft_ray.speech.encoders.base import FAMILIES, Encoder, EncoderWeights, HiddenStates
from speechft_ray.speech.features.cache import Entry, FeatureCache
from speechft_ray.speech.features.front_end import SharedFrontEnd
from speechft_ray.speech.precision import encode_in
from speechft_ray.speech.prefetch import pin, read_groups


class AudioClip(NamedTuple):
    """One utterance of a batch or a crop of it: its cached front-end output, else its waveform."""

    key: str
    samples: int
    whole: bool
    """Whether nothing was cut off."""
    conv_features: torch.Tensor | None = None
    """``(frames, channels)``"""
    wave: torch.Tensor | None = None
    """``(samples,)``, on the CPU"""
    start: int = 0
    """First sample within the utterance."""


@dataclass(frozen=True, kw_only=True)
class FeatureLoader:
    """Reads the utterances of a run and encodes them."""

    encoder: Encoder
    device: torch.device
    freeze_front_end: bool
    """Whether the front end is computed without gradient."""
    audio_caches: Sequence[AudioCache]
    """By objective."""
    precision: Precision = "float32"
    """Of the products of encoder and heads in training and validation."""
    readers: int = 1
    """Threads that read ahead (``speech.prefetch``)."""
    cached_rows: dict[tuple[int, str], tuple[Entry, int]] = field(default_factory=dict)
    """Place of the front end's output on disk, by objective and utterance."""

    def read(
        self,
        index: int,
        utterance: Utterance,
        longest: int | None,
        rng: np.random.Generator | None = None,
        step_samples: int = 1,
    ) -> AudioClip:
        """Reads an utterance of objective ``index``.

        Longer than ``longest`` samples: a random crop that starts at a multiple of
        ``step_samples``. Reads files only, so it may run in other threads.
        """
        whole = longest is None or utterance.samples <= longest
        row = self.cached_rows.get((index, utterance.key))
        if whole and row is not None:
            entry, place = row
            rows = pin(entry.rows([place]), self.device)
            return AudioClip(utterance.key, utterance.samples, True, conv_features=rows)
        wave, start = self.audio_caches[index].read(utterance), 0
        if not whole and rng is not None:
            wave, start = crop(wave, longest, rng, step_samples)
        on_cpu = pin(torch.from_numpy(wave), self.device)
        return AudioClip(utterance.key, len(wave), whole, wave=on_cpu, start=start)

    def read_groups(
        self, index: int, groups: Iterable[Sequence[Example]]
    ) -> Generator[tuple[Sequence[Example], list[AudioClip]], None, None]:
        """Yields groups of examples of objective ``index`` with their audio, uncropped; that of the
        next groups is read meanwhile."""
        return read_groups(
            ((group, [item.utterance for item in group]) for group in groups),
            lambda utterance: self.read(index, utterance, None),
            lambda utterance: self.count_bytes(index, utterance),
            self.readers,
        )

    def count_bytes(self, index: int, utterance: Utterance) -> int:
        """Returns the memory that reading an utterance of objective ``index`` takes."""
        if row := self.cached_rows.get((index, utterance.key)):
            entry, place = row
            return entry.counts[place] * entry.reader.row_bytes
        return 4 * utterance.samples  # float32

    def encode(
        self, clips: Sequence[AudioClip], masks: Sequence[torch.Tensor] | None = None
    ) -> HiddenStates:
        """Encodes clips, padded together behind the front end; padding reaches no valid frame.

        ``masks``: one bool ``(frames,)`` per clip, true where the mask embedding replaces the front
        end's output.
        """
        return self.encoder.hidden_states_from(self._conv_features(clips), masks)

    def with_conv_features(self, clip: AudioClip) -> AudioClip:
        """Returns the clip with its front-end output, to be shared by encoders with the same front
        end."""
        return clip._replace(conv_features=self._conv_features([clip])[0])

    def _conv_features(self, clips: Sequence[AudioClip]) -> list[torch.Tensor]:
        features = {
            place: clip.conv_features.to(self.device, non_blocking=True)
            for place, clip in enumerate(clips)
            if clip.conv_features is not None
        }
        rest = [place for place in range(len(clips)) if place not in features]
        rule = choose_rule(self.device.type)
        batches = (
            make_batches([clips[place].samples for place in rest], rule)
            if rule.padded
            else [[member] for member in range(len(rest))]
        )
        for members in batches:
            places = [rest[member] for member in members]
            waves = [
                wave.to(self.device, non_blocking=True)
                for wave in (clips[place].wave for place in places)
                if wave is not None  # a clip without features has a waveform
            ]
            with torch.no_grad() if self.freeze_front_end else nullcontext():
                outputs = self.encoder.conv_features(waves)
            features.update(zip(places, (output.float() for output in outputs), strict=True))
        return [features[place] for place in range(len(clips))]


def cache_conv_features(
    loader: FeatureLoader,
    start: EncoderWeights,
    objectives: Sequence[ObjectiveData],
    cache: FeatureCache | None,
    spec: FinetuneSpec,
    report: Callable[[Mapping[str, float]], None],
) -> None:
    """Writes the frozen front end's output of uncropped utterances to the disk cache.

    Skipped for an objective whose run ends before the first epoch does: caching would cost more
    than it saves. Also skipped where the cache has no space. Both follow from sizes alone, so a run
    that is resumed on this machine computes the same numbers.
    """
    family = FAMILIES.get(start.family)
    if cache is None or not loader.freeze_front_end or not family.front_end_prefixes:
        return
    splits = {index: _cacheable_utterances(data, spec) for index, data in enumerate(objectives)}
    total, done = sum(len(part) for parts in splits.values() for part in parts), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        report({"done": 0, "total": spec.updates, "cached": done, "to_cache": total})

    for index, parts in splits.items():
        (prefix,), shape = family.front_end_prefixes, family.describe(start.config)
        front_end = SharedFrontEnd(
            cache,
            loader.encoder.module(),
            prefix,
            shape,
            objectives[index].corpus,
            loader.precision,
        )
        encoder = encode_in(loader.precision, loader.encoder, loader.device)
        audio_cache = loader.audio_caches[index]

        def read(utterance: Utterance, audio_cache: AudioCache = audio_cache) -> torch.Tensor:
            return torch.from_numpy(audio_cache.read(utterance))

        for utterances in parts:
            entry = front_end.load_or_compute(encoder, utterances, read, advance, loader.readers)
            if entry is not None:
                loader.cached_rows.update(
                    {(index, item.key): (entry, place) for place, item in enumerate(utterances)}
                )


def _cacheable_utterances(data: ObjectiveData, spec: FinetuneSpec) -> list[list[Utterance]]:
    """Returns the uncropped utterances of train and dev, split by split; none where the run ends
    before the first epoch does."""
    if spec.updates * data.objective.batch_size < len(data.train):
        return []
    longest = max_crop_samples(data, spec.crop_seconds)
    train = [
        item.utterance
        for item in data.train
        if longest is None or item.utterance.samples <= longest
    ]
    return [part for part in (train, [item.utterance for item in data.dev]) if part]
