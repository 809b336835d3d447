"""Corpora and features that a calibration measures on: real utterances, few of them read."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from speechft_ray.core.units import SAMPLE_RATE_HZ
from speechft_ray.speech.corpora.base import SPLITS, Corpus, Estimate, Utterance
from speechft_ray.superb.extractor import Batch, Indices, Location

POOL_BYTES = 64 << 20
"""Random states that stand in for all features of a split."""

RUN_SECONDS = 20.0
"""Audio of one run of neighbours in the order of lengths: that of one batch on a CPU
(``speech.batching``)."""

QUANTILES = (1 / 6, 1 / 2, 5 / 6)
"""Where in the order of lengths runs are taken."""


def repeat_utterances(small: Corpus, estimate: Estimate) -> Corpus:
    """Returns a corpus of the estimated size whose utterances are copies of a small corpus, of the
    estimated mean length to about 2 %. Every utterance is in every split."""
    chosen = _match_mean(list(small.utterances), estimate.mean_seconds * SAMPLE_RATE_HZ)
    originals: dict[str, Utterance] = {}
    copies: list[Utterance] = []
    for split in SPLITS:
        for index in range(estimate.utterances[split]):
            original = chosen[index % len(chosen)]
            key = f"{split}-{index:06d}"
            originals[key] = original
            copies.append(replace(original, key=key, split=split))
    return replace(
        small,
        utterances=copies,
        read=lambda utterance: small.read(originals[utterance.key]),
        audio_ids={},
        is_in_memory=True,
    )


def _match_mean(utterances: list[Utterance], mean_samples: float) -> list[Utterance]:
    """Leaves out the longest or the shortest while that brings the mean length nearer, and at most
    half of them."""
    ordered = sorted(utterances, key=lambda item: item.samples)
    least = -(-len(ordered) // 2)
    while len(ordered) > least:
        mean = sum(item.samples for item in ordered) / len(ordered)
        if abs(mean - mean_samples) <= 0.02 * mean_samples:
            break
        ordered.pop(-1 if mean > mean_samples else 0)
    return ordered


def select_runs(utterances: Sequence[Utterance], most_seconds: float) -> list[Utterance]:
    """Returns runs of neighbours in the order of lengths, so that they share batches as all
    utterances do; together at most so much audio, and at least one utterance."""
    ordered = sorted(utterances, key=lambda item: item.samples)
    limit = min(RUN_SECONDS, most_seconds / len(QUANTILES)) * SAMPLE_RATE_HZ
    picked: dict[str, Utterance] = {}
    for quantile in QUANTILES:
        samples = 0
        for utterance in ordered[int(quantile * len(ordered)) :]:
            samples += utterance.samples
            if picked and samples > limit:
                break
            picked[utterance.key] = utterance
    return list(picked.values())


class RandomFeatures:
    """Random states in place of features: ``superb.features.InMemoryFeatures`` without the
    encoding. ``rows_read`` counts the rows of all batches so far."""

    location: Location = "memory"

    def __init__(
        self, frames: Sequence[int], state_count: int, dim: int, pooled: bool, device: torch.device
    ) -> None:
        self.frames = torch.tensor(frames)
        self.count = len(frames)
        dtype = torch.float32 if pooled else torch.float16
        row_bytes = state_count * dim * dtype.itemsize
        rows = max(2, min(POOL_BYTES // row_bytes, int(self.frames.sum())))
        generator = torch.Generator().manual_seed(0)
        self._states = torch.randn(state_count, rows, dim, generator=generator).to(device, dtype)
        self._rows = torch.arange(rows)
        self.rows_read = 0

    def batch(self, indices: Indices) -> Batch:
        """Returns random states of as many rows as the utterances have."""
        frames = self.frames[indices]
        total = int(frames.sum())
        self.rows_read += total
        rows = self._rows.repeat(-(-total // len(self._rows)))[:total]
        states = self._states.index_select(1, rows.to(self._states.device))
        return Batch(states.float(), frames)

    def read_batches(
        self, order: Iterable[Indices]
    ) -> Generator[tuple[Indices, Batch], None, None]:
        """Yields each of these indices with its batch."""
        for indices in order:
            yield indices, self.batch(indices)


def read_numbers(path: Path) -> dict[str, float]:
    """Returns numbers by name, or nothing where the file is missing or damaged."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): float(value) for name, value in values.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
