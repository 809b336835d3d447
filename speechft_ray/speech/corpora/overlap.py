"""Train/test contamination: recordings and speakers of a test set in the data of a fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from speechft_ray.core.errors import UserError
from speechft_ray.speech.corpora.base import NO_SPEAKER, Corpus, Utterance

FINETUNING_SPLITS = ("train", "dev")
"""Splits that a fine-tuning uses: it trains on one and selects its checkpoint on the other."""


_HEAD_SAMPLES = 8_000
"""Recordings that differ within their first samples (half a second at 16 kHz) are not decoded
further."""
_UNREADABLE = ""
"""In place of a hash."""
_THREADS = 8


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
    keys within one corpus. Recordings are decoded as well, so that a lossless copy in another
    format, width or number of equal channels is the same; a copy with another gain, cut, rate or
    lossy coding is not. Speakers are compared where both corpora have one namespace.
    """
    train = [utterance for split in FINETUNING_SPLITS for utterance in finetuning.split(split)]
    test = evaluation.split("test")
    by_audio = bool(finetuning.audio_ids and evaluation.audio_ids)
    train_ids = {_identity(finetuning, utterance, by_audio) for utterance in train}
    other = [one for one in test if _identity(evaluation, one, by_audio) not in train_ids]
    shared = len(test) - len(other) + _count_copies(finetuning, train, evaluation, other)
    train_speakers = _speaker_names(finetuning, train)
    test_speakers = _speaker_names(evaluation, test)
    same_namespace = _namespace(finetuning) == _namespace(evaluation)
    if not (same_namespace and train_speakers and test_speakers):
        return Overlap(shared, len(test), 0, 0)
    return Overlap(shared, len(test), len(train_speakers & test_speakers), len(test_speakers))


def _count_copies(
    finetuning: Corpus, train: Sequence[Utterance], evaluation: Corpus, test: Sequence[Utterance]
) -> int:
    """Returns how many of the test utterances decode to the samples of a training utterance."""
    if finetuning.hash_recording is None or evaluation.hash_recording is None:
        return 0
    for at_most in (_HEAD_SAMPLES, None):
        trained = _hash_all(finetuning.hash_recording, train, at_most)
        tested = _hash_all(evaluation.hash_recording, test, at_most)
        both = (set(trained) & set(tested)) - {_UNREADABLE}
        train = [one for one, content in zip(train, trained, strict=True) if content in both]
        test = [one for one, content in zip(test, tested, strict=True) if content in both]
    return len(test)


def _hash_all(
    hash_recording: Callable[[Utterance, int | None], str],
    utterances: Sequence[Utterance],
    at_most: int | None,
) -> list[str]:
    def hash_one(utterance: Utterance) -> str:
        try:
            return hash_recording(utterance, at_most)
        except UserError:  # damaged or gone since: no reason for a report to fail
            return _UNREADABLE

    with ThreadPoolExecutor(max_workers=_THREADS) as threads:
        return list(threads.map(hash_one, utterances))


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
