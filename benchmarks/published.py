"""The cost of the paper's four tasks under s3prl's published protocol, calculated.

s3prl encodes an utterance whenever training draws it and at every validation. The steps are those
of its configs (``ctc/libriphone.yaml``, ``ctc/snips.yaml``, ``voxceleb1/config.yaml``,
``emotion/config.yaml``); hours follow from the mean lengths of the corpora (``lengths.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from benchmarks.lengths import CORPORA, simulate_samples
from speechft_ray.core.units import SAMPLE_RATE_HZ

BASE_SHAPE = (13, 768)
"""Hidden states of a Base encoder and their width."""
BASE_VALUES = BASE_SHAPE[0] * BASE_SHAPE[1]
"""Values of a frame of a Base encoder: every hidden state."""
FRAMES_PER_HOUR = 50 * 3600


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How s3prl trains and validates one task."""

    corpus: str
    updates: int
    batch: int
    """Utterances of one update, accumulated parts together."""
    validations: int
    validates_test: bool = False
    """Whether every validation also runs over test."""
    pooled: bool = False
    """Whether means over frames are all that training needs."""
    crop_seconds: float | None = None
    """Longest part of a training utterance that s3prl encodes."""
    folds: int = 1

    @property
    def hours(self) -> float:
        """Audio of all splits; the folds share it."""
        return sum(split.hours for split in CORPORA[self.corpus].values())

    def count_draws(self) -> float:
        """Returns how often a training utterance is drawn in one fold."""
        return self.updates * self.batch / CORPORA[self.corpus]["train"].count

    def loop_hours(self) -> float:
        """Returns the hours of audio that s3prl's loop encodes for one encoder and rate."""
        splits = CORPORA[self.corpus]
        mean = splits["train"].mean
        if self.crop_seconds is not None:
            seconds = np.array(simulate_samples(splits["train"], 20_000)) / SAMPLE_RATE_HZ
            mean = float(np.minimum(seconds, self.crop_seconds).mean())
        training = self.updates * self.batch * mean / 3600
        validating = self.validations * (
            splits["dev"].hours + self.validates_test * splits["test"].hours
        )
        return self.folds * (training + validating + splits["test"].hours)


PROTOCOLS: Mapping[str, Protocol] = {
    "pr": Protocol(corpus="librispeech", updates=100_000, batch=32, validations=100),
    "sid": Protocol(
        corpus="voxceleb1",
        updates=200_000,
        batch=32,
        validations=40,
        validates_test=True,
        pooled=True,
        crop_seconds=8.0,
    ),
    "er": Protocol(
        corpus="iemocap",
        updates=30_000,
        batch=32,
        validations=30,
        validates_test=True,
        pooled=True,
        folds=5,
    ),
    "sf": Protocol(corpus="snips", updates=200_000, batch=32, validations=100),
    "asr": Protocol(corpus="librispeech", updates=200_000, batch=16, validations=100),
}
"""``asr`` beside the paper's four: it shares its corpus with ``pr``."""
PAPER = ("pr", "sid", "er", "sf")

BASE_CHANNELS = 512
"""Values of a frame behind the convolutional front end."""
FORM_BYTES = {"exact": 2 * BASE_VALUES, "int8": BASE_VALUES + 2 * 13}
"""Bytes of a stored frame of a Base encoder: float16, or int8 with a float16 scale for each of 13
states. ``compact`` takes its rank + 2."""
ALL_OR_NOTHING_GB = 50.0
"""Disk that a split's features had to fit in as a whole, or each draw was encoded anew."""


def store_gb(hours: float, frame_bytes: float) -> float:
    """Returns the size of so many hours of frames in 10^9 bytes."""
    return hours * FRAMES_PER_HOUR * frame_bytes / 1e9


def all_or_nothing_hours(task: str) -> float:
    """Returns the hours that one encoder encodes where a split is stored as float16 in 50 GB or not
    at all: each split once, and training anew for every draw where it does not fit."""
    protocol = PROTOCOLS[task]
    train = CORPORA[protocol.corpus]["train"]
    if protocol.pooled or store_gb(train.hours, FORM_BYTES["exact"]) <= ALL_OR_NOTHING_GB:
        return protocol.hours
    return protocol.hours - train.hours + protocol.updates * protocol.batch * train.mean / 3600


def format_costs() -> list[str]:
    """Returns the rows of the cost table of docs/performance.md."""
    rows, sums = [], [0.0, 0.0, 0.0]
    for task in PAPER:
        protocol = PROTOCOLS[task]
        hours = (protocol.hours, protocol.loop_hours(), all_or_nothing_hours(task))
        sums = [total + value for total, value in zip(sums, hours, strict=True)]
        sizes = [round(store_gb(protocol.hours, size)) for size in FORM_BYTES.values()]
        features = "means" if protocol.pooled else " / ".join(f"{size} GB" for size in sizes)
        front_end = store_gb(protocol.hours, 4 * BASE_CHANNELS)
        rows.append(
            f"| `{task}` | {protocol.corpus} | {hours[0]:.1f} | {hours[1]:,.0f} | {hours[2]:,.0f} "
            f"| {features} | {front_end:.0f} GB |"
        )
    return [*rows, f"| sum | | {sums[0]:.0f} | {sums[1]:,.0f} | {sums[2]:,.0f} | | |"]


def gpu_hours(encoders: int, throughput: float, updates_per_second: float) -> tuple[float, float]:
    """Returns the GPU hours of a sweep over the paper's four tasks, and those of its longest
    evaluation: audio over ``throughput`` (times real time), updates over their rate."""
    of_tasks = [
        PROTOCOLS[task].hours / throughput
        + PROTOCOLS[task].folds * PROTOCOLS[task].updates / updates_per_second / 3600
        for task in PAPER
    ]
    return encoders * sum(of_tasks), max(of_tasks)


GPUS = (1, 8, 64)
THROUGHPUT = 1779
"""Seconds of audio per second of wav2vec 2.0 Base on one A100, bfloat16, batch 16 (NVIDIA
DeepLearningExamples)."""
ASSUMED_UPDATES = (50, 200)
"""Probe updates per second; an assumption."""


def format_gpus(encoders: int = 6) -> list[str]:
    """Returns the rows of the GPU table of docs/performance.md."""
    rows = []
    for rate in ASSUMED_UPDATES:
        total, longest = gpu_hours(encoders, THROUGHPUT, rate)
        walls = " | ".join(f"{max(total / count, longest):.1f}" for count in GPUS)
        rows.append(f"| {rate} | {total:.1f} | {longest:.1f} | {walls} |")
    return rows
