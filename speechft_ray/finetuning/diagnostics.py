"""How far a checkpoint is from where it began, in weights and in features: the numbers that explain alpha.

The paper's journal version holds that features may stay similar where weights move far. Its measure could not be read; here it
is linear CKA (Kornblith et al. 2019, arXiv 1905.00414), which does not see rotations and scales of a whole feature space.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from speechft_ray.core.units import FRAME_FIELD_SAMPLES
from speechft_ray.finetuning.lessons import Lesson
from speechft_ray.finetuning.penalties import part_of
from speechft_ray.speech.encoders.base import FAMILIES, Encoder, EncoderWeights

PROBE_UTTERANCES = 64
"""Most dev utterances that features are compared on."""

PROBE_SECONDS = 60.0
"""Most audio of them: 3000 frames, four times the dimensions of a Base encoder."""


class LinearCka:
    """Linear CKA of two feature spaces over the same frames, added up part by part so that no frame is kept.

    ``|Y^T X|^2 / (|X^T X| |Y^T Y|)`` with Frobenius norms and centred X and Y (section 4 of the paper, its form over features).
    """

    def __init__(self) -> None:
        self._frames = 0
        self._sums: tuple[torch.Tensor | float, torch.Tensor | float] = (0.0, 0.0)
        self._products: list[torch.Tensor | float] = [0.0, 0.0, 0.0]

    def add(self, left: torch.Tensor, right: torch.Tensor) -> None:
        """Takes features of the same frames, ``(frames, dim)`` and ``(frames, other dim)``."""
        x, y = left.double(), right.double()
        self._frames += len(x)
        self._sums = (self._sums[0] + x.sum(dim=0), self._sums[1] + y.sum(dim=0))
        pairs = ((x, x), (y, y), (x, y))
        self._products = [known + one.T @ other for known, (one, other) in zip(self._products, pairs, strict=True)]

    def value(self) -> float | None:
        """Returns a number from 0 to 1; ``None`` where features do not vary or are not finite."""
        if not self._frames:
            return None
        x, y = (torch.as_tensor(total) for total in self._sums)
        pairs = ((x, x), (y, y), (x, y))
        norms = [
            float(torch.linalg.matrix_norm(product - torch.outer(one, other) / self._frames))
            for product, (one, other) in zip(self._products, pairs, strict=True)
        ]
        scale = norms[0] * norms[1]
        return norms[2] ** 2 / scale if scale > 0 and math.isfinite(norms[2] ** 2 / scale) else None


def diagnose(
    start: EncoderWeights, checkpoints: Mapping[str, EncoderWeights], waves: Sequence[torch.Tensor], device: torch.device
) -> dict[str, Any]:
    """Returns the distances of each checkpoint from ``start``, as JSON data by the names of ``checkpoints``.

    ``weight_distance``: by part of the encoder, |theta - theta0| / |theta0|. ``cka``: by hidden state, see ``LinearCka``, over
    the frames of ``waves``, each ``(samples,)`` and encoded alone, dropout off.
    """
    family = FAMILIES.get(start.family)
    first = _built(start, device)
    found = {}
    for name, weights in checkpoints.items():
        found[name] = {
            "weight_distance": relative_distances(start, weights, family.front_end_prefixes, family.pretraining_only_prefixes),
            "cka": similarities(first, _built(weights, device), waves, device),
        }
    return found


def probe_set(lessons: Sequence[Lesson]) -> list[torch.Tensor]:
    """Returns waveforms ``(samples,)`` of dev utterances in the order of their keys, an equal share of each objective.

    The last one may be cut. Damaged recordings are left out.
    """
    waves = []
    for lesson in lessons:
        left_samples = int(PROBE_SECONDS * 16_000) // len(lessons)
        chosen = sorted(lesson.dev, key=lambda item: item.utterance.key)[: max(1, PROBE_UTTERANCES // len(lessons))]
        for example in chosen:
            if left_samples < FRAME_FIELD_SAMPLES:
                break
            wave = torch.tensor(lesson.corpus.read(example.utterance)[:left_samples], dtype=torch.float32)
            if bool(torch.isfinite(wave).all()):
                left_samples -= len(wave)
                waves.append(wave)
    return waves


def relative_distances(
    start: EncoderWeights, tuned: EncoderWeights, front_end_prefixes: Sequence[str], left_out_prefixes: Sequence[str]
) -> dict[str, float]:
    """Returns |theta - theta0| / |theta0| of the front end (``front_end``) and of the parts that ``part_of`` tells apart.

    Parts whose weights are all zero at the start have no such number and are left out.
    """
    squares: dict[str, list[float]] = {}
    for name, value in start.state.items():
        if name.startswith(tuple(left_out_prefixes)):
            continue
        part = "front_end" if name.startswith(tuple(front_end_prefixes)) else part_of(name)
        moved, size = squares.setdefault(part, [0.0, 0.0])
        before, after = value.double(), tuned.state[name].double()
        squares[part] = [moved + float((after - before).square().sum()), size + float(before.square().sum())]
    return {part: math.sqrt(moved / size) for part, (moved, size) in sorted(squares.items()) if size > 0}


@torch.no_grad()
def similarities(
    first: Encoder, second: Encoder, waves: Sequence[torch.Tensor], device: torch.device
) -> list[float | None]:
    """Returns the linear CKA of each hidden state of two encoders of one family, from the input of layer 1 on."""
    totals = [LinearCka() for _ in range(first.state_count)]
    for wave in waves:
        left, right = (encoder.hidden_states([wave.to(device)]) for encoder in (first, second))
        frames = int(left.frames[0])
        for total, one, other in zip(totals, left.states, right.states, strict=True):
            total.add(one[0, :frames], other[0, :frames])
    return [total.value() for total in totals]


def _built(weights: EncoderWeights, device: torch.device) -> Encoder:
    encoder = FAMILIES.get(weights.family).build(weights)
    encoder.module().to(device)
    return encoder
