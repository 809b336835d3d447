"""Lengths of the utterances that jobs encode and train on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import numpy as np

from speechft_ray.core.specs import EvalSpec, Precision
from speechft_ray.core.units import FRAME_FIELD_SAMPLES, FRAME_STRIDE_SAMPLES, SAMPLE_RATE_HZ
from speechft_ray.speech.corpora.base import SPLITS, Corpus, Estimate, Utterance
from speechft_ray.speech.encoders.base import Shape
from speechft_ray.superb.sampling import WINDOW_SAMPLES
from speechft_ray.superb.setup import build_task_data
from speechft_ray.superb.storage_plan import list_shared
from speechft_ray.superb.tasks.base import TASKS, TrainingFreeTask

Lengths = np.ndarray
"""Samples of each utterance at 16 kHz, int64."""

MOST_EXAMPLES = 20_000
"""Utterances up to which a task is built to see which of them it reads. Of a larger corpus it is
taken to read all, since a plan has to be quick: a task on 150,000 utterances takes seconds to
build."""


@runtime_checkable
class KnowsLengths(Protocol):
    """Utterances that know their lengths without being made, as those of an index do."""

    def lengths(self) -> np.ndarray: ...


@dataclass(frozen=True, kw_only=True)
class EncoderSize:
    """What the cost of an encoder depends on."""

    name: str
    """``encoder``, with its precision where that is not float32, or ``fbank`` for the
    baseline."""
    state_count: int
    dim: int
    front_end_channels: int
    """Values of a frame behind the convolutional front end; 0 without one."""
    weight_bytes: int = 0

    def at(self, precision: Precision) -> EncoderSize:
        """Returns the encoder at a precision, which has a speed of its own; FBank has none."""
        if precision == "float32" or not self.front_end_channels:
            return self
        return replace(self, name=f"{self.name} {precision}")

    @classmethod
    def of(cls, name: str, shape: Shape, weight_bytes: int = 0) -> EncoderSize:
        """Returns the size of an encoder of this shape."""
        return cls(
            name=name,
            state_count=shape.state_count,
            dim=shape.dim,
            front_end_channels=shape.conv_layers[-1][0] if shape.conv_layers else 0,
            weight_bytes=weight_bytes,
        )


@dataclass(frozen=True, kw_only=True)
class TaskSize:
    """The utterances of one evaluation on one corpus, split by split in the order of its
    examples."""

    corpus: str
    """Name of the corpus in units of work."""
    splits: Mapping[str, Lengths]
    trains: bool = True
    """False for a task without a probe."""
    stored: Mapping[str, Lengths] = field(default_factory=dict)
    """The utterances that are encoded for each split, where they are others than its examples
    (``superb.storage_plan.list_shared``)."""

    def recordings(self, split: str) -> Lengths:
        """Returns the lengths of what is encoded for a split."""
        return self.stored.get(split, self.splits[split])


@dataclass(frozen=True, kw_only=True)
class EvaluationSize:
    """The utterances of an evaluation: of its one corpus, or of each fold.

    ``recordings``: those of all folds, each once, where folds share them.
    """

    folds: Sequence[TaskSize]
    recordings: Lengths | None = None


@dataclass(frozen=True, kw_only=True)
class ObjectiveSize:
    """The utterances of one fine-tuning objective."""

    corpus: str
    train: Lengths
    dev: Lengths


def seconds(lengths: Lengths) -> float:
    """Returns the audio of these utterances in seconds."""
    return float(lengths.sum()) / SAMPLE_RATE_HZ


def frames(lengths: Lengths) -> np.ndarray:
    """Returns the encoder frames of each utterance (``core.units.frame_count``)."""
    counts: np.ndarray = (lengths - FRAME_FIELD_SAMPLES) // FRAME_STRIDE_SAMPLES + 1
    positive: np.ndarray = np.maximum(0, counts)
    return positive


def split_lengths(corpus: Corpus, split: str) -> Lengths:
    """Returns the lengths of one split of a corpus, in corpus order."""
    return to_lengths(corpus.split(split))


def estimate_lengths(estimate: Estimate) -> dict[str, Lengths]:
    """Returns the lengths of a corpus that is still to be made, all equal to the mean."""
    samples = round(estimate.mean_seconds * SAMPLE_RATE_HZ)
    return {split: np.full(estimate.utterances[split], samples, np.int64) for split in SPLITS}


def measure_task(spec: EvalSpec, corpus: Corpus, name: str) -> TaskSize:
    """Returns the utterances of an evaluation on one opened corpus. Raises ``UserError`` for labels
    that do not fit. See ``MOST_EXAMPLES``."""
    if len(corpus.utterances) > MOST_EXAMPLES:
        every = {split: split_lengths(corpus, split) for split in SPLITS}
        return TaskSize(corpus=name, splits=every)
    data = build_task_data(TASKS.get(spec.task), spec, corpus)
    utterances = {
        split: [item.utterance for item in examples] for split, examples in data.examples.items()
    }
    return TaskSize(
        corpus=name,
        splits={split: to_lengths(items) for split, items in utterances.items()},
        trains=not isinstance(data, TrainingFreeTask),
        stored={
            split: to_lengths(list_shared(data.corpus, items))
            for split, items in utterances.items()
        },
    )


def to_lengths(utterances: Sequence[Utterance]) -> Lengths:
    """Returns the lengths of utterances."""
    if isinstance(utterances, KnowsLengths):
        return utterances.lengths()
    return np.array([item.samples for item in utterances], dtype=np.int64)


def join_recordings(corpora: Sequence[Corpus], splits: Sequence[str]) -> Lengths | None:
    """Returns the lengths of the recordings of several folds, each recording once; ``None`` where a
    corpus does not say which recordings it shares."""
    if not all(corpus.audio_ids for corpus in corpora):
        return None
    samples = {
        corpus.audio_ids[item.key]: item.samples
        for corpus in corpora
        for item in corpus.utterances
        if item.split in splits
    }
    return np.array(list(samples.values()), dtype=np.int64)


def mean_batch_samples(lengths: Lengths, size: int, sampling: str) -> float:
    """Returns the expected samples of one training batch (``superb.sampling``)."""
    size = min(size, len(lengths))
    if sampling == "windows":
        starts = np.minimum(np.arange(len(lengths)), len(lengths) - size)
        sizes = np.where(lengths[starts] > WINDOW_SAMPLES, max(1, size // 2), size)
        ends = np.concatenate([[0], lengths.cumsum()])
        return float((ends[starts + sizes] - ends[starts]).mean())
    if sampling == "buckets":
        full = len(lengths) // (2 * size) * 2
        rest = len(lengths) - full * size
        used = np.sort(lengths)[::-1]
        if full and rest <= 1:
            return float(used[: full * size].sum()) / full
        return float(used.sum()) / (full + 1)
    return float(lengths.sum()) / -(-len(lengths) // size)
