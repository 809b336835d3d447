"""Recordings of two speakers at once, from a synthetic corpus of single utterances.

As in Libri2Mix, a recording has one utterance of each speaker, and the second begins while the
first speaks. Noise lies under all of it, since silence where one utterance ends would tell the
turns.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import replace

import numpy as np

from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.speech.corpora.base import SPLITS, Corpus, Utterance
from speechft_ray.speech.synthesis.parts import STEP_SAMPLES
from speechft_ray.speech.synthesis.phones import SILENCE

VERSION = 1
"""Raised whenever the audio or the labels of the same corpus would change."""

START_FRACTIONS = (0.1, 0.8)
"""The second speaker begins after so much of the first utterance, drawn evenly."""
SNR_DB = (5.0, 20.0)
"""The noise, drawn evenly, beside the power of the whole recording."""


def mix_pairs(corpus: Corpus, seed: int) -> Corpus:
    """Returns a corpus with a recording for every two neighbouring utterances of a split.

    It has the columns ``segments`` (blank-separated ``speaker:start_sample:end_sample``, silence at
    both ends of an utterance left out) and ``speaker`` (both, sorted). An utterance without a
    neighbour is left out. Of two neighbours the speakers must differ, as they do in the synthetic
    parts.
    """
    pairs: dict[str, tuple[Utterance, Utterance, int]] = {}
    mixtures: list[Utterance] = []
    for split in SPLITS:
        single = corpus.split(split)
        for one, other in zip(single[::2], single[1::2], strict=False):
            key = f"{one.key}_{other.key}"
            fraction = random.Random(f"{seed} {key}").uniform(*START_FRACTIONS)
            offset = STEP_SAMPLES * round(fraction * one.samples / STEP_SAMPLES)
            pairs[key] = one, other, offset
            mixtures.append(_describe(key, one, other, offset))

    def read(mixture: Utterance) -> np.ndarray:
        one, other, offset = pairs[mixture.key]
        wave = np.zeros(mixture.samples, dtype=np.float32)
        wave[: one.samples] += corpus.read(one)
        wave[offset : offset + other.samples] += corpus.read(other)
        rng = np.random.default_rng([seed, zlib.crc32(mixture.key.encode())])
        level = np.sqrt(np.mean(np.square(wave))) * 10 ** (-rng.uniform(*SNR_DB) / 20)
        noise = rng.standard_normal(len(wave), dtype=np.float32)
        mixed: np.ndarray = np.clip(wave + np.float32(level) * noise, -1.0, 1.0)
        return mixed

    return replace(
        corpus,
        fingerprint=fingerprint([corpus.fingerprint, "mixed", VERSION, seed]),
        utterances=mixtures,
        read=read,
        columns=frozenset({"segments", "speaker"}),
        audio_ids={
            key: fingerprint(
                [corpus.audio_ids[one.key], corpus.audio_ids[other.key], VERSION, seed]
            )
            for key, (one, other, _) in pairs.items()
        },
    )


def _describe(key: str, one: Utterance, other: Utterance, offset: int) -> Utterance:
    segments = [_make_segment(one, 0), _make_segment(other, offset)]
    speakers = sorted({one.labels["speaker"], other.labels["speaker"]})
    return Utterance(
        key=key,
        split=one.split,
        samples=max(one.samples, offset + other.samples),
        labels={"segments": " ".join(segments), "speaker": " ".join(speakers)},
    )


def _make_segment(utterance: Utterance, offset: int) -> str:
    """Returns ``speaker:start:end`` of the speech in an utterance, from its alignment."""
    starts = [start for start, label in utterance.alignment if label != SILENCE]
    last_start, last = utterance.alignment[-1]
    end = last_start if last == SILENCE else utterance.samples
    return f"{utterance.labels['speaker']}:{offset + starts[0]}:{offset + end}"
