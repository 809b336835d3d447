"""Distances of a checkpoint from its start, in weights and in features.

The paper's journal version states that features may stay similar where weights move far. Its
measure could not be read. This module uses linear CKA (Kornblith et al. 2019, arXiv 1905.00414),
which is invariant to rotation and scale of the whole feature space.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from speechft_ray.core.units import FRAME_FIELD_SAMPLES
from speechft_ray.finetuning.data import ObjectiveData
from speechft_ray.finetuning.features import AudioClip, FeatureLoader
from speechft_ray.finetuning.penalties import encoder_part
from speechft_ray.speech.encoders.base import FAMILIES, EncoderWeights

PROBE_UTTERANCES = 64
"""Most dev utterances that features are compared on."""

PROBE_SECONDS = 60.0
"""Most audio of them: 3000 frames, four times the dimensions of a Base encoder."""

_ROUNDING = 1e-12
"""Share of a sum of squares that is below the precision of float64."""


class LinearCka:
    """Linear CKA of two feature spaces over the same frames, accumulated part by part.

    ``|Y^T X|^2 / (|X^T X| |Y^T Y|)`` with Frobenius norms and centred X and Y (section 4 of the
    paper, its form over features). No frame is stored.
    """

    def __init__(self) -> None:
        self._frames = 0
        self._sums = [torch.zeros(())] * 2
        self._products = [torch.zeros(())] * 3

    def add(self, left: torch.Tensor, right: torch.Tensor) -> None:
        """Adds features of the same frames, ``(frames, dim)`` and ``(frames, other dim)``."""
        x, y = left.double(), right.double()
        self._frames += len(x)
        self._sums = [
            total.to(x) + part.sum(dim=0) for total, part in zip(self._sums, (x, y), strict=True)
        ]
        pairs = ((x, x), (y, y), (x, y))
        self._products = [
            total.to(x) + one.T @ other
            for total, (one, other) in zip(self._products, pairs, strict=True)
        ]

    def compute(self) -> float | None:
        """Returns a number from 0 to 1; ``None`` where features are constant or not finite."""
        if not self._frames:
            return None
        x, y = self._sums
        centred = [
            torch.linalg.matrix_norm(product - torch.outer(one, other) / self._frames)
            for product, (one, other) in zip(self._products, ((x, x), (y, y), (x, y)), strict=True)
        ]
        sizes = [torch.linalg.matrix_norm(product) for product in self._products[:2]]
        # The rounding error of constant features is no variation.
        if not all(norm > _ROUNDING * size for norm, size in zip(centred, sizes, strict=False)):
            return None
        cka = float(centred[2] ** 2 / (centred[0] * centred[1]))
        return min(cka, 1.0) if math.isfinite(cka) else None


def compute_diagnostics(
    start: EncoderWeights,
    checkpoints: Mapping[str, EncoderWeights],
    objectives: Sequence[ObjectiveData],
    loader: FeatureLoader,
    heartbeat: Callable[[], None],
) -> dict[str, Any]:
    """Returns the distances of each checkpoint from ``start``, as JSON data by the names of
    ``checkpoints``.

    ``weight_distance``: by part of the encoder, |theta - theta0| / |theta0|. ``cka``: by hidden
    state, see ``LinearCka``, over the frames of some dev utterances, without dropout, in float32.
    The encoder of ``loader`` itself is not used. ``heartbeat`` is called after every utterance.
    """
    family, start_loader = FAMILIES.get(start.family), _loader_with(loader, start)
    clips = load_probe_set(objectives, loader)
    if loader.freeze_front_end:  # all checkpoints have the front end of the start
        clips = [start_loader.with_conv_features(clip) for clip in clips]
    return {
        name: {
            "weight_distance": compute_weight_distances(
                start, weights, family.front_end_prefixes, family.pretraining_only_prefixes
            ),
            "cka": compute_cka(start_loader, _loader_with(loader, weights), clips, heartbeat),
        }
        for name, weights in checkpoints.items()
    }


def load_probe_set(objectives: Sequence[ObjectiveData], loader: FeatureLoader) -> list[AudioClip]:
    """Reads the first dev utterances in the order of their keys, an equal share of each objective.

    The last one may be cropped. Damaged recordings are left out.
    """
    clips = []
    for index, data in enumerate(objectives):
        left_samples = int(PROBE_SECONDS * 16_000) // len(objectives)
        examples = sorted(data.dev, key=lambda item: item.utterance.key)[
            : max(1, PROBE_UTTERANCES // len(objectives))
        ]
        for example in examples:
            if left_samples < FRAME_FIELD_SAMPLES:
                break
            # The crop is the same in every run, so that runs can be compared.
            clip = loader.read(index, example.utterance, left_samples, np.random.default_rng(0))
            if _is_finite(clip):
                left_samples -= clip.samples
                clips.append(clip)
    return clips


def compute_weight_distances(
    start: EncoderWeights,
    tuned: EncoderWeights,
    front_end_prefixes: Sequence[str],
    left_out_prefixes: Sequence[str],
) -> dict[str, float]:
    """Returns |theta - theta0| / |theta0| of the front end (``front_end``) and of each part in the
    sense of ``encoder_part``.

    Parts whose start weights are all zero are left out.
    """
    squares: dict[str, list[float]] = {}
    for name, value in start.state.items():
        if name.startswith(tuple(left_out_prefixes)):
            continue
        part = "front_end" if name.startswith(tuple(front_end_prefixes)) else encoder_part(name)
        difference, size = squares.setdefault(part, [0.0, 0.0])
        before, after = value.double(), tuned.state[name].double()
        squares[part] = [
            difference + float((after - before).square().sum()),
            size + float(before.square().sum()),
        ]
    return {
        part: math.sqrt(difference / size)
        for part, (difference, size) in sorted(squares.items())
        if size > 0
    }


@torch.no_grad()
def compute_cka(
    first: FeatureLoader,
    second: FeatureLoader,
    clips: Sequence[AudioClip],
    heartbeat: Callable[[], None],
) -> list[float | None]:
    """Returns the linear CKA of each hidden state of two encoders of one family, from the input of
    layer 1 on."""
    totals = [LinearCka() for _ in range(first.encoder.state_count)]
    for clip in clips:
        left, right = first.encode([clip]), second.encode([clip])
        frames = int(left.frames[0])
        for total, one, other in zip(totals, left.states, right.states, strict=True):
            total.add(one[0, :frames], other[0, :frames])
        heartbeat()
    return [total.compute() for total in totals]


def _loader_with(loader: FeatureLoader, weights: EncoderWeights) -> FeatureLoader:
    """Returns the loader with another encoder, without dropout."""
    encoder = FAMILIES.get(weights.family).build(weights)
    encoder.module().to(loader.device)
    return replace(loader, encoder=encoder)


def _is_finite(clip: AudioClip) -> bool:
    if clip.wave is not None:
        return bool(torch.isfinite(clip.wave).all())
    return clip.conv_features is not None and bool(torch.isfinite(clip.conv_features).all())
