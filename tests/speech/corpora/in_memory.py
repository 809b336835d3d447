"""Corpora in memory: utterances without sound, for tests that compare keys, splits and speakers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from speechft_ray.speech.corpora.base import Corpus, Utterance


def make_corpus(rows: Sequence[tuple[str, str, str]], name: str = "one", **fields: Any) -> Corpus:
    """Returns a corpus of ``(key, split, speaker)`` rows; ``fields`` are more of ``Corpus``."""
    utterances = [
        Utterance(key=key, split=split, samples=800, labels={"speaker": speaker})
        for key, split, speaker in rows
    ]
    return Corpus(
        name=name,
        fingerprint=name,
        utterances=utterances,
        read=lambda _: np.zeros(800),
        columns=frozenset({"speaker"}),
        **fields,
    )
