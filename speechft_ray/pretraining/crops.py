"""Labelled crops of a corpus: drawn at random for training, or in order for held-out scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from speechft_ray.core.errors import UserError
from speechft_ray.core.units import FRAME_STRIDE_SAMPLES, frame_count
from speechft_ray.pretraining.targets import nearest
from speechft_ray.speech.corpora.base import Corpus, Progress, Utterance

FeatureFunction = Callable[[torch.Tensor], torch.Tensor]
"""Features of one utterance: ``(samples,)`` to ``(frames at 20 ms, dim)``."""


@dataclass(frozen=True, kw_only=True)
class CropSource:
    """The utterances of one split that are long enough for a crop."""

    corpus: Corpus
    utterances: Sequence[Utterance]
    offsets: np.ndarray
    """First frame of each utterance in the row of all frames, and their number at the end."""

    def frames(self) -> int:
        """Frames of all utterances."""
        return int(self.offsets[-1])


def open_source(corpus: Corpus, split: str, crop_frames: int) -> CropSource:
    """Selects the utterances of a split that are long enough for a crop.

    Raises ``UserError`` when there is none.
    """
    utterances = [
        utterance
        for utterance in corpus.split(split)
        if frame_count(utterance.samples) >= crop_frames
    ]
    if not utterances:
        raise UserError(
            f"no utterance in the split `{split}` of corpus `{corpus.name}` has {crop_frames} "
            "frames of 20 ms. Take a corpus with longer recordings or a smaller `crop_frames`."
        )
    counts = [frame_count(utterance.samples) for utterance in utterances]
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return CropSource(corpus=corpus, utterances=utterances, offsets=offsets)


def sample_features(
    source: CropSource, compute: FeatureFunction, frames: int, seed: int
) -> np.ndarray:
    """Returns features ``(frames, dim)`` of randomly chosen utterances; fewer frames where the
    source has fewer."""
    rows, count = [], 0
    for index in np.random.default_rng(seed).permutation(len(source.utterances)):
        if count >= frames:
            break
        wave = torch.from_numpy(source.corpus.read(source.utterances[index]))
        rows.append(compute(wave).numpy())
        count += len(rows[-1])
    return np.concatenate(rows)[:frames]


def compute_labels(
    source: CropSource,
    compute: FeatureFunction,
    centroids: np.ndarray,
    progress: Progress | None = None,
) -> np.ndarray:
    """Returns the nearest centroid of every frame of all utterances in a row, ``(all frames,)``
    int16. ``progress`` counts utterances."""
    labels = np.empty(source.frames(), dtype=np.int16)
    for index, utterance in enumerate(source.utterances):
        features = compute(torch.from_numpy(source.corpus.read(utterance))).numpy()
        labels[source.offsets[index] : source.offsets[index + 1]] = nearest(features, centroids)
        if progress is not None:
            progress(index + 1, len(source.utterances))
    return labels


def draw_crops(
    source: CropSource,
    labels: np.ndarray,
    *,
    crops: int,
    crop_frames: int,
    crop_samples: int,
    rng: np.random.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws random crops, every possible start equally likely.

    Returns waves ``(crops, samples)`` and labels ``(crops, frames)`` int64.
    """
    places = np.diff(source.offsets) - crop_frames + 1
    ends = np.cumsum(places)
    positions = rng.integers(0, ends[-1], size=crops)
    indices = np.searchsorted(ends, positions, side="right")
    starts = positions - (ends - places)[indices]
    return _read_crops(
        source, labels, list(zip(indices, starts, strict=True)), crop_frames, crop_samples
    )


def iter_crops(
    source: CropSource, labels: np.ndarray, *, crops: int, crop_frames: int, crop_samples: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields batches of crops that cover each utterance from its start without overlap; a rest
    shorter than a crop is left out."""
    places = [
        (index, start)
        for index, count in enumerate(np.diff(source.offsets))
        for start in range(0, int(count) - crop_frames + 1, crop_frames)
    ]
    for begin in range(0, len(places), crops):
        batch = places[begin : begin + crops]
        yield _read_crops(source, labels, batch, crop_frames, crop_samples)


def _read_crops(
    source: CropSource,
    labels: np.ndarray,
    places: Sequence[tuple[int, int]],
    crop_frames: int,
    crop_samples: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Reads the crops at ``places``: utterance index and first frame of each."""
    waves, targets = [], []
    for index, start in places:
        begin = start * FRAME_STRIDE_SAMPLES
        waves.append(source.corpus.read(source.utterances[index])[begin : begin + crop_samples])
        first = source.offsets[index] + start
        targets.append(labels[first : first + crop_frames])
    return torch.from_numpy(np.stack(waves)), torch.from_numpy(np.stack(targets).astype(np.int64))
