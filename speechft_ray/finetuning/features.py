"""From the utterances of a batch to their hidden states: each is heard alone, and its front end at
most once.

Stable fine-tuning freezes the front end, so what it says of an utterance is read from the disk
cache that evaluations use, or computed without gradient. Nothing is padded before the front end:
the group norm of Base encoders would mix padding into every frame (s3prl pads first), and a cached
value has to be the computed one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from speechft_ray.core.specs import FinetuneSpec
from speechft_ray.finetuning.batches import Recordings, cropped
from speechft_ray.finetuning.data import Lesson, crop_samples
from speechft_ray.speech.corpora.base import Utterance
from speechft_ray.speech.encoders.base import FAMILIES, Encoder, EncoderWeights, HiddenStates
from speechft_ray.speech.features.cache import Entry, FeatureCache
from speechft_ray.speech.features.front_end import SharedFrontEnd


class Sound(NamedTuple):
    """One utterance of a batch, read: what the front end said of it where that is known, else its
    waveform."""

    key: str
    samples: int
    whole: bool
    """Whether nothing was cut off."""
    front: torch.Tensor | None = None
    """``(frames, channels)``"""
    wave: np.ndarray | None = None
    """``(samples,)``"""
    start: int = 0
    """Sample of the utterance that it starts at."""


@dataclass(frozen=True, kw_only=True)
class Listener:
    """Hears utterances with the encoder of one run. ``frozen``: whether the front end never
    learns."""

    encoder: Encoder
    device: torch.device
    frozen: bool
    recordings: Sequence[Recordings]
    """By objective."""
    fronts: dict[tuple[int, str], tuple[Entry, int]] = field(default_factory=dict)
    """Where the front end's output lies on disk, by objective and utterance."""

    def read(
        self,
        index: int,
        utterance: Utterance,
        longest: int | None,
        draw: np.random.Generator | None = None,
        step_samples: int = 1,
    ) -> Sound:
        """Reads an utterance of an objective, or a random piece of it that starts at a multiple of
        a step.

        Touches files only, so it may run in another thread.
        """
        whole = longest is None or utterance.samples <= longest
        kept = self.fronts.get((index, utterance.key))
        if whole and kept is not None:
            entry, place = kept
            return Sound(utterance.key, utterance.samples, True, front=entry.rows([place]))
        wave, start = self.recordings[index].read(utterance), 0
        if not whole and draw is not None:
            wave, start = cropped(wave, longest, draw, step_samples)
        return Sound(utterance.key, len(wave), whole, wave=wave, start=start)

    def states(
        self, sounds: Sequence[Sound], masked: Sequence[torch.Tensor] | None = None
    ) -> HiddenStates:
        """Encodes utterances, padded together behind the front end, where padding reaches no valid
        frame.

        ``masked``: one bool ``(frames,)`` each, true where the mask embedding stands instead of
        what the front end said.
        """
        return self.encoder.hidden_states_from([self._front(sound) for sound in sounds], masked)

    def heard(self, sound: Sound) -> Sound:
        """Returns the same with what the front end says of it, for encoders that have the same
        front end."""
        return sound._replace(front=self._front(sound))

    def _front(self, sound: Sound) -> torch.Tensor:
        if sound.front is not None:
            return sound.front.to(self.device, non_blocking=True)
        wave = torch.tensor(sound.wave, device=self.device)
        with torch.no_grad() if self.frozen else nullcontext():
            return self.encoder.conv_features([wave])[0].float()


def precision(device: torch.device) -> AbstractContextManager[object]:
    """What an encoder and its heads run within: bfloat16 products over float32 weights on a GPU,
    plain float32 on a CPU."""
    if device.type == "cuda":
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return nullcontext()


def keep_fronts(
    listener: Listener,
    start: EncoderWeights,
    lessons: Sequence[Lesson],
    cache: FeatureCache | None,
    spec: FinetuneSpec,
    report: Callable[[Mapping[str, float]], None],
) -> None:
    """Puts what a frozen front end says of whole utterances on disk, where it will be read again
    and there is room.

    A run that does not come round the training utterances of an objective once would pay more than
    it saves. Whether something is kept follows from sizes alone, so a run that is taken up again on
    this machine sees the same numbers.
    """
    family = FAMILIES.get(start.family)
    if cache is None or not listener.frozen or not family.front_end_prefixes:
        return
    wanted = {index: _whole(lesson, spec) for index, lesson in enumerate(lessons)}
    total, done = sum(len(part) for parts in wanted.values() for part in parts), 0

    def more(count: int) -> None:
        nonlocal done
        done += count
        report({"done": 0, "total": spec.updates, "heard": done, "to_hear": total})

    for index, parts in wanted.items():
        (prefix,), shape = family.front_end_prefixes, family.describe(start.config)
        kept = SharedFrontEnd(
            cache, listener.encoder.module(), prefix, shape, lessons[index].corpus
        )
        recordings = listener.recordings[index]

        def read(utterance: Utterance, recordings: Recordings = recordings) -> torch.Tensor:
            return torch.tensor(recordings.read(utterance), device=listener.device)

        for utterances in parts:
            entry = kept.load_or_compute(listener.encoder, utterances, read, more)
            if entry is not None:
                listener.fronts.update(
                    {(index, item.key): (entry, place) for place, item in enumerate(utterances)}
                )


def _whole(lesson: Lesson, spec: FinetuneSpec) -> list[list[Utterance]]:
    """Returns the utterances of train and dev that are heard uncut, split by split; none where a
    run is too short."""
    if spec.updates * lesson.objective.batch_size < len(lesson.train):
        return []
    longest = crop_samples(lesson, spec.crop_seconds)
    train = [
        item.utterance
        for item in lesson.train
        if longest is None or item.utterance.samples <= longest
    ]
    return [part for part in (train, [item.utterance for item in lesson.dev]) if part]
