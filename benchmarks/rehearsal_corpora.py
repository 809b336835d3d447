"""Corpora of noise with the lengths of real ones and few utterances, for ``rehearsal.py``."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from benchmarks.lengths import CORPORA, simulate_samples
from speechft_ray.core.units import SAMPLE_RATE_HZ
from speechft_ray.speech.corpora.base import SPLITS, Corpus, Utterance

FEWEST = {"librispeech": 2, "snips": 2, "voxceleb1": 2, "iemocap": 10}
"""Utterances that a split has at any scale; IEMOCAP: all splits together, two in each session."""
SESSIONS = 5
PHONES, EMOTIONS, SLOTS = [f"p{index}" for index in range(40)], ("a", "b"), ("O", "when", "where")
PHONES_PER_SECOND, WORDS_PER_SECOND = 10, 2.5


def simulate_corpora(name: str, factor: float) -> list[Corpus]:
    """Returns a corpus with ``factor`` times the utterances of the real one and its lengths; five
    for IEMOCAP, one per fold, over the same recordings."""
    if name == "iemocap":
        return _simulate_folds(factor)
    utterances: list[Utterance] = []
    for number, split in enumerate(SPLITS):
        lengths = CORPORA[name][split]
        count = max(FEWEST[name], round(factor * lengths.count))
        utterances += [
            make_utterance(f"{split}-{place:06}", split, samples, place)
            for place, samples in enumerate(simulate_samples(lengths, count, seed=number))
        ]
    return [make_noise_corpus(name, utterances)]


def _simulate_folds(factor: float) -> list[Corpus]:
    splits = CORPORA["iemocap"]
    count = max(FEWEST["iemocap"], round(factor * sum(item.count for item in splits.values())))
    samples = simulate_samples(splits["train"], count)
    folds = []
    for fold in range(SESSIONS):
        utterances = []
        for place, length in enumerate(samples):
            session, own = place % SESSIONS, place // SESSIONS
            is_dev = session == (fold + 1) % SESSIONS
            split = "test" if session == fold else "dev" if is_dev else "train"
            utterances.append(make_utterance(f"clip-{place:06}", split, length, own))
        folds.append(make_noise_corpus("iemocap", utterances, f"fold {fold}"))
    return folds


def make_utterance(key: str, split: str, samples: int, place: int) -> Utterance:
    """Returns an utterance with labels for every task, of as many tokens as its length allows."""
    seconds, rng = samples / SAMPLE_RATE_HZ, np.random.default_rng(zlib.crc32(key.encode()))
    words = max(len(SLOTS), int(WORDS_PER_SECOND * seconds))
    labels = {
        "phones": " ".join(rng.choice(PHONES, max(1, int(PHONES_PER_SECOND * seconds)))),
        "text": " ".join(rng.choice(["ab", "cde", "fg"], words)),
        "slots": " ".join(SLOTS[index % len(SLOTS)] for index in range(words)),
        "speaker": f"s{place % 2}",
        "emotion": EMOTIONS[place % len(EMOTIONS)],
    }
    return Utterance(key=key, split=split, samples=samples, labels=labels)


def make_noise_corpus(name: str, utterances: Sequence[Utterance], part: str = "") -> Corpus:
    """Returns a corpus whose audio is noise, the same whenever an utterance is read."""
    return Corpus(
        name=name,
        fingerprint=f"noise {name} {part} {len(utterances)}",
        utterances=utterances,
        read=_read_noise,
        columns=frozenset(utterances[0].labels),
        audio_ids={item.key: item.key for item in utterances},
    )


def _read_noise(utterance: Utterance) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(utterance.key.encode()))
    return rng.standard_normal(utterance.samples, dtype=np.float32) * 0.1
