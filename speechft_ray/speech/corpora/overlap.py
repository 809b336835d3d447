"""Train/test contamination: recordings and speakers of a test set in the data of a fine-tuning."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from speechft_ray.speech.corpora.base import NO_SPEAKER, Corpus, Utterance

FINETUNING_SPLITS = ("train", "dev")
"""Splits that a fine-tuning uses: it trains on one and selects its checkpoint on the other."""


class Overlap(NamedTuple):
    """How many utterances and speakers of a test set are in the data of a fine-tuning."""

    utterances: int
    of_utterances: int
    speakers: int
    of_speakers: int
    """0 where the speakers of the two corpora cannot be compared."""


def compute_overlap(finetuning: Corpus, evaluation: Corpus) -> Overlap:
    """Returns how many test utterances and speakers of ``evaluation`` are in ``finetuning``.

    Utterances are compared by the identity of their audio where both corpora have it, else by their
    keys within one corpus. Speakers are compared where both corpora have one namespace.
    """
    train = [utterance for split in FINETUNING_SPLITS for utterance in finetuning.split(split)]
    test = evaluation.split("test")
    by_audio = bool(finetuning.audio_ids and evaluation.audio_ids)
    train_ids = {_identity(finetuning, utterance, by_audio) for utterance in train}
    shared = sum(_identity(evaluation, utterance, by_audio) in train_ids for utterance in test)
    train_speakers = _speaker_names(finetuning, train)
    test_speakers = _speaker_names(evaluation, test)
    same_namespace = _namespace(finetuning) == _namespace(evaluation)
    if not (same_namespace and train_speakers and test_speakers):
        return Overlap(shared, len(test), 0, 0)
    return Overlap(shared, len(test), len(train_speakers & test_speakers), len(test_speakers))


def _identity(corpus: Corpus, utterance: Utterance, by_audio: bool) -> tuple[str, str]:
    return ("", corpus.audio_ids[utterance.key]) if by_audio else (corpus.name, utterance.key)


def _namespace(corpus: Corpus) -> str:
    return corpus.speaker_namespace or corpus.name


def _speaker_names(corpus: Corpus, utterances: Iterable[Utterance]) -> set[str]:
    """Returns the speakers; a recording with ``segments`` has several, separated by blanks."""
    labels = [utterance.labels.get("speaker", "").strip() for utterance in utterances]
    names = [
        name
        for label in labels
        for name in (label.split() if "segments" in corpus.columns else [label])
    ]
    return set(names) - {"", NO_SPEAKER}
