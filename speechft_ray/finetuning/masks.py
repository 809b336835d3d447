"""What an objective learns from a batch: targets as they are, or, at masked frames alone, the names
of the frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from speechft_ray.core.units import FRAME_STRIDE_SAMPLES, frame_count
from speechft_ray.finetuning.data import Example, Lesson
from speechft_ray.finetuning.features import Sound
from speechft_ray.speech.heads.base import IGNORED


class Taught(NamedTuple):
    """``targets``: one per utterance. ``masked``: one bool ``(frames,)`` per utterance, None where
    nothing is masked."""

    targets: list[torch.Tensor]
    masked: list[torch.Tensor] | None


def taught(
    lesson: Lesson, examples: Sequence[Example], sounds: Sequence[Sound], draw: np.random.Generator
) -> Taught:
    """Returns what to learn from utterances that were read, whole or in part. Masks are drawn in
    their order."""
    masking = lesson.kind.masking
    if masking is None:
        return Taught([item.target for item in examples], None)
    targets, masked = [], []
    for example, sound in zip(examples, sounds, strict=True):
        first, frames = sound.start // FRAME_STRIDE_SAMPLES, frame_count(sound.samples)
        hidden = torch.from_numpy(masking.draw_mask(lesson.options, frames, draw))
        names = example.target[first : first + frames].long()
        targets.append(names.masked_fill(~hidden, IGNORED))
        masked.append(hidden)
    return Taught(targets, masked)
