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

BASE_VALUES = 13 * 768
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
