"""What two corpora share: recordings that a fine-tuning has seen, and voices that it has heard, in
the test set of a task."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from speechft_ray.speech.corpora.base import NO_SPEAKER, Corpus, Utterance

SEEN = ("train", "dev")
"""Splits that a fine-tuning sees: it learns from one and is chosen on the other."""


class Overlap(NamedTuple):
    """What of a test set is in a fine-tuning's data."""

    utterances: int
    of_utterances: int
    speakers: int
    of_speakers: int
    """0 where the speakers of the two corpora cannot be compared."""


def compute_overlap(tuned: Corpus, tested: Corpus) -> Overlap:
    """Returns how many test utterances and test speakers of ``tested`` a fine-tuning on ``tuned``
    has seen.

    Utterances are compared by their content where both corpora know it, else by their keys within
    one corpus; speakers where both corpora name the same people.
    """
    seen = [utterance for split in SEEN for utterance in tuned.split(split)]
    test = tested.split("test")
    by_content = bool(tuned.audio_ids and tested.audio_ids)
    known = {_identity(tuned, utterance, by_content) for utterance in seen}
    shared = sum(_identity(tested, utterance, by_content) in known for utterance in test)
    heard, wanted = _speakers(tuned, seen), _speakers(tested, test)
    comparable = _people(tuned) == _people(tested) and bool(heard) and bool(wanted)
    return Overlap(
        shared,
        len(test),
        len(heard & wanted) if comparable else 0,
        len(wanted) if comparable else 0,
    )


def _identity(corpus: Corpus, utterance: Utterance, by_content: bool) -> tuple[str, str]:
    return ("", corpus.audio_ids[utterance.key]) if by_content else (corpus.name, utterance.key)


def _people(corpus: Corpus) -> str:
    return corpus.speaker_namespace or corpus.name


def _speakers(corpus: Corpus, utterances: Iterable[Utterance]) -> set[str]:
    """Names of speakers; a recording with ``segments`` has several, separated by blanks."""
    labels = [utterance.labels.get("speaker", "").strip() for utterance in utterances]
    names = [
        name
        for label in labels
        for name in (label.split() if "segments" in corpus.columns else [label])
    ]
    return set(names) - {"", NO_SPEAKER}
