"""Labelled crops of a corpus, drawn by seed or laid out in a row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from speechft_ray.core.errors import UserError
from speechft_ray.core.units import FRAME_STRIDE_SAMPLES, frame_count
from speechft_ray.pretraining.targets import nearest
from speechft_ray.speech.corpora.base import Corpus, Progress, Utterance

Compute = Callable[[torch.Tensor], torch.Tensor]
"""Features of one utterance: ``(samples,)`` to ``(frames at 20 ms, dim)``."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """The utterances of one split that are long enough for a crop. ``offsets``: where each one's
    frames start in a flat row."""

    corpus: Corpus
    utterances: Sequence[Utterance]
    offsets: np.ndarray

    def frames(self) -> int:
        """Frames of all utterances."""
        return int(self.offsets[-1])


def source(corpus: Corpus, split: str, crop_frames: int) -> Source:
    """Returns the source of a split. Raises ``UserError`` when no utterance is as long as a
    crop."""
    kept = [
        utterance
        for utterance in corpus.split(split)
        if frame_count(utterance.samples) >= crop_frames
    ]
    if not kept:
        raise UserError(
            f"no utterance in the split `{split}` of corpus `{corpus.name}` has {crop_frames} frames of 20 ms. "
            "Take a corpus with longer recordings or a smaller `crop_frames`."
        )
    counts = [frame_count(utterance.samples) for utterance in kept]
    return Source(corpus=corpus, utterances=kept, offsets=np.concatenate([[0], np.cumsum(counts)]))


def sampled_features(part: Source, compute: Compute, frames: int, seed: int) -> np.ndarray:
    """Returns ``compute(wave) -> (frames, dim)`` of a seeded choice of utterances, ``frames`` in
    all or as many as there are."""
    rows, found = [], 0
    for index in np.random.default_rng(seed).permutation(len(part.utterances)):
        if found >= frames:
            break
        rows.append(compute(torch.from_numpy(part.corpus.read(part.utterances[index]))).numpy())
        found += len(rows[-1])
    return np.concatenate(rows)[:frames]


def labels_of(
    part: Source, compute: Compute, centroids: np.ndarray, progress: Progress | None = None
) -> np.ndarray:
    """Returns the nearest centroid of every frame of all utterances in one row ``(all frames,)``
    int16."""
    row = np.empty(part.frames(), dtype=np.int16)
    for index, utterance in enumerate(part.utterances):
        found = compute(torch.from_numpy(part.corpus.read(utterance))).numpy()
        row[part.offsets[index] : part.offsets[index + 1]] = nearest(found, centroids)
        if progress is not None:
            progress(index + 1, len(part.utterances))
    return row


def drawn(
    part: Source,
    labels: np.ndarray,
    *,
    crops: int,
    crop_frames: int,
    crop_samples: int,
    rng: np.random.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws crops, every frame of the split about equally often: waves ``(crops, samples)`` and
    labels ``(crops, frames)`` int64."""
    places = np.diff(part.offsets) - crop_frames + 1
    ends = np.cumsum(places)
    chosen = rng.integers(0, ends[-1], size=crops)
    indices = np.searchsorted(ends, chosen, side="right")
    starts = chosen - (ends - places)[indices]
    return _cut(part, labels, list(zip(indices, starts, strict=True)), crop_frames, crop_samples)


def in_a_row(
    part: Source, labels: np.ndarray, *, crops: int, crop_frames: int, crop_samples: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields batches of crops that cover each utterance from its start without overlap; a rest
    shorter than a crop is left out."""
    places = [
        (index, start)
        for index, count in enumerate(np.diff(part.offsets))
        for start in range(0, int(count) - crop_frames + 1, crop_frames)
    ]
    for begin in range(0, len(places), crops):
        yield _cut(part, labels, places[begin : begin + crops], crop_frames, crop_samples)


def _cut(
    part: Source,
    labels: np.ndarray,
    places: Sequence[tuple[int, int]],
    crop_frames: int,
    crop_samples: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    waves, targets = [], []
    for index, start in places:
        begin = start * FRAME_STRIDE_SAMPLES
        waves.append(part.corpus.read(part.utterances[index])[begin : begin + crop_samples])
        first = part.offsets[index] + start
        targets.append(labels[first : first + crop_frames])
    return torch.from_numpy(np.stack(waves)), torch.from_numpy(np.stack(targets).astype(np.int64))
