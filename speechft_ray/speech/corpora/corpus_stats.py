"""Counts what a corpus has, and compares it with what a complete copy has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from speechft_ray.speech.corpora.base import SPLITS, Corpus, ExpectedCounts

HOURS_TOLERANCE = 0.02
"""Hours of papers are rounded, and some count pauses differently: two per cent off is no
difference."""


@dataclass(frozen=True, kw_only=True)
class SplitStats:
    """One split: how much there is. ``classes``: different labels by column, of columns whose
    labels recur."""

    split: str
    utterances: int
    hours: float
    speakers: int
    classes: Mapping[str, int]


def compute_stats(corpus: Corpus) -> list[SplitStats]:
    """Returns a count of every split, also of an empty one."""
    recurring = [
        column for column in sorted(corpus.columns - {"speaker"}) if _recurs(corpus, column)
    ]
    return [_split(corpus, split, recurring) for split in SPLITS]


def compare_stats(corpus: Corpus, counts: list[SplitStats], expected: ExpectedCounts) -> list[str]:
    """Returns a sentence for each number that is not as expected."""
    found = []
    for each in counts:
        found += _compared(
            f"utterances in {each.split}", each.utterances, expected.utterances.get(each.split)
        )
        found += _compared(
            f"speakers in {each.split}", each.speakers, expected.speakers.get(each.split)
        )
        hours = expected.hours.get(each.split)
        if hours is not None and abs(each.hours - hours) > max(0.05, HOURS_TOLERANCE * hours):
            found.append(f"hours in {each.split}: {each.hours:.1f}, expected {hours:g}")
    for column, classes in expected.classes.items():
        labels = {
            utterance.labels[column]
            for utterance in corpus.utterances
            if column in utterance.labels
        }
        found += _compared(f"labels in the column {column}", len(labels), classes)
    tested = (
        {utterance.key for utterance in corpus.split("test")}
        if expected.trials is not None
        else set()
    )
    found += _compared(
        "trials of test", sum(one in tested for _, one, _ in corpus.trials), expected.trials
    )
    return found


def _split(corpus: Corpus, split: str, columns: list[str]) -> SplitStats:
    utterances = corpus.split(split)
    return SplitStats(
        split=split,
        utterances=len(utterances),
        hours=sum(utterance.seconds for utterance in utterances) / 3600,
        speakers=len(
            {
                name
                for utterance in utterances
                for name in utterance.labels.get("speaker", "").split()
            }
        ),
        classes={
            column: len({utterance.labels[column] for utterance in utterances})
            for column in columns
        },
    )


def _recurs(corpus: Corpus, column: str) -> bool:
    labels = {utterance.labels[column] for utterance in corpus.utterances}
    return 1 < len(labels) <= len(corpus.utterances) / 2


def _compared(what: str, found: int, expected: int | None) -> list[str]:
    return [] if expected in (None, found) else [f"{what}: {found:,}, expected {expected:,}"]
