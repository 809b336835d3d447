"""How far a checkpoint is from where it began, in weights and in features: the numbers that explain
alpha.

The paper's journal version holds that features may stay similar where weights move far. Its measure
could not be read; here it is linear CKA (Kornblith et al. 2019, arXiv 1905.00414), which does not
see rotations and scales of a whole feature space.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from speechft_ray.core.units import FRAME_FIELD_SAMPLES
from speechft_ray.finetuning.data import Lesson
from speechft_ray.finetuning.features import Listener, Sound
from speechft_ray.finetuning.penalties import part_of
from speechft_ray.speech.encoders.base import FAMILIES, EncoderWeights

PROBE_UTTERANCES = 64
"""Most dev utterances that features are compared on."""

PROBE_SECONDS = 60.0
"""Most audio of them: 3000 frames, four times the dimensions of a Base encoder."""

_ROUNDING = 1e-12
"""Share of a sum of squares that float64 cannot be trusted with."""


class LinearCka:
    """Linear CKA of two feature spaces over the same frames, added up part by part so that no frame
    is kept.

    ``|Y^T X|^2 / (|X^T X| |Y^T Y|)`` with Frobenius norms and centred X and Y (section 4 of the
    paper, its form over features).
    """

    def __init__(self) -> None:
        self._frames = 0
        self._sums = [torch.zeros(())] * 2
        self._products = [torch.zeros(())] * 3

    def add(self, left: torch.Tensor, right: torch.Tensor) -> None:
        """Takes features of the same frames, ``(frames, dim)`` and ``(frames, other dim)``."""
        x, y = left.double(), right.double()
        self._frames += len(x)
        self._sums = [
            known.to(x) + part.sum(dim=0) for known, part in zip(self._sums, (x, y), strict=True)
        ]
        pairs = ((x, x), (y, y), (x, y))
        self._products = [
            known.to(x) + one.T @ other
            for known, (one, other) in zip(self._products, pairs, strict=True)
        ]

    def value(self) -> float | None:
        """Returns a number from 0 to 1; ``None`` where features do not vary or are not finite."""
        if not self._frames:
            return None
        x, y = self._sums
        centred = [
            torch.linalg.matrix_norm(product - torch.outer(one, other) / self._frames)
            for product, (one, other) in zip(self._products, ((x, x), (y, y), (x, y)), strict=True)
        ]
        sizes = [torch.linalg.matrix_norm(product) for product in self._products[:2]]
        # What rounding leaves of features that are constant is no variation.
        if not all(norm > _ROUNDING * size for norm, size in zip(centred, sizes, strict=False)):
            return None
        found = float(centred[2] ** 2 / (centred[0] * centred[1]))
        return min(found, 1.0) if math.isfinite(found) else None


def diagnose(
    start: EncoderWeights,
    checkpoints: Mapping[str, EncoderWeights],
    lessons: Sequence[Lesson],
    listener: Listener,
    beat: Callable[[], None],
) -> dict[str, Any]:
    """Returns the distances of each checkpoint from ``start``, as JSON data by the names of
    ``checkpoints``.

    ``weight_distance``: by part of the encoder, |theta - theta0| / |theta0|. ``cka``: by hidden
    state, see ``LinearCka``, over the frames of some dev utterances, dropout off, in float32.
    ``listener`` reads and hears; its own encoder is not asked. ``beat`` is called after every
    utterance.
    """
    family, first = FAMILIES.get(start.family), _hearing(listener, start)
    sounds = [
        first.heard(sound) if listener.frozen else sound for sound in probe_set(lessons, listener)
    ]
    return {
        name: {
            "weight_distance": relative_distances(
                start, weights, family.front_end_prefixes, family.pretraining_only_prefixes
            ),
            "cka": similarities(first, _hearing(listener, weights), sounds, beat),
        }
        for name, weights in checkpoints.items()
    }


def probe_set(lessons: Sequence[Lesson], listener: Listener) -> list[Sound]:
    """Reads the first dev utterances in the order of their keys, an equal share of each objective.

    The last one may be cut. Damaged recordings are left out.
    """
    sounds = []
    for index, lesson in enumerate(lessons):
        left_samples = int(PROBE_SECONDS * 16_000) // len(lessons)
        chosen = sorted(lesson.dev, key=lambda item: item.utterance.key)[
            : max(1, PROBE_UTTERANCES // len(lessons))
        ]
        for example in chosen:
            if left_samples < FRAME_FIELD_SAMPLES:
                break
            # A piece is the same in every run, so that runs can be compared.
            sound = listener.read(index, example.utterance, left_samples, np.random.default_rng(0))
            if _is_finite(sound):
                left_samples -= sound.samples
                sounds.append(sound)
    return sounds


def relative_distances(
    start: EncoderWeights,
    tuned: EncoderWeights,
    front_end_prefixes: Sequence[str],
    left_out_prefixes: Sequence[str],
) -> dict[str, float]:
    """Returns |theta - theta0| / |theta0| of the front end (``front_end``) and of the parts that
    ``part_of`` tells apart.

    Parts whose weights are all zero at the start have no such number and are left out.
    """
    squares: dict[str, list[float]] = {}
    for name, value in start.state.items():
        if name.startswith(tuple(left_out_prefixes)):
            continue
        part = "front_end" if name.startswith(tuple(front_end_prefixes)) else part_of(name)
        moved, size = squares.setdefault(part, [0.0, 0.0])
        before, after = value.double(), tuned.state[name].double()
        squares[part] = [
            moved + float((after - before).square().sum()),
            size + float(before.square().sum()),
        ]
    return {
        part: math.sqrt(moved / size) for part, (moved, size) in sorted(squares.items()) if size > 0
    }


@torch.no_grad()
def similarities(
    first: Listener, second: Listener, sounds: Sequence[Sound], beat: Callable[[], None]
) -> list[float | None]:
    """Returns the linear CKA of each hidden state of two encoders of one family, from the input of
    layer 1 on."""
    totals = [LinearCka() for _ in range(first.encoder.state_count)]
    for sound in sounds:
        left, right = first.states([sound]), second.states([sound])
        frames = int(left.frames[0])
        for total, one, other in zip(totals, left.states, right.states, strict=True):
            total.add(one[0, :frames], other[0, :frames])
        beat()
    return [total.value() for total in totals]


def _hearing(listener: Listener, weights: EncoderWeights) -> Listener:
    """Returns a listener like this one with an encoder of its own, dropout off."""
    encoder = FAMILIES.get(weights.family).build(weights)
    encoder.module().to(listener.device)
    return replace(listener, encoder=encoder)


def _is_finite(sound: Sound) -> bool:
    if sound.wave is not None:
        return bool(np.isfinite(sound.wave).all())
    return sound.front is not None and bool(torch.isfinite(sound.front).all())
