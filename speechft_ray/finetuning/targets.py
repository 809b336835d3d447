"""Targets of a batch: label ids, or pseudo-labels at masked frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from speechft_ray.core.units import FRAME_STRIDE_SAMPLES, frame_count
from speechft_ray.finetuning.data import Example, ObjectiveData
from speechft_ray.finetuning.features import AudioClip
from speechft_ray.speech.heads.base import IGNORED


class Targets(NamedTuple):
    """``targets``: one per utterance. ``masks``: one bool ``(frames,)`` per utterance, None where
    nothing is masked."""

    targets: list[torch.Tensor]
    masks: list[torch.Tensor] | None


def make_targets(
    data: ObjectiveData,
    examples: Sequence[Example],
    clips: Sequence[AudioClip],
    rng: np.random.Generator,
) -> Targets:
    """Returns the targets of utterances or crops. Masks are drawn from ``rng`` in their order."""
    masking = data.kind.masking
    if masking is None:
        return Targets([item.target for item in examples], None)
    targets, masks = [], []
    for example, clip in zip(examples, clips, strict=True):
        first, frames = clip.start // FRAME_STRIDE_SAMPLES, frame_count(clip.samples)
        mask = torch.from_numpy(masking.draw_mask(data.options, frames, rng))
        labels = example.target[first : first + frames].long()
        targets.append(labels.masked_fill(~mask, IGNORED))
        masks.append(mask)
    return Targets(targets, masks)
