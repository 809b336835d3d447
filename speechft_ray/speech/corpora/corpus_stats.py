"""Statistics of a corpus by split, and their comparison with the numbers of a complete copy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from speechft_ray.speech.corpora.base import SPLITS, Corpus, ExpectedCounts
from speechft_ray.speech.corpora.labels import has_classes

HOURS_TOLERANCE = 0.02
"""Relative. Hours of papers are rounded, and some count pauses differently."""


@dataclass(frozen=True, kw_only=True)
class SplitStats:
    """Statistics of one split.

    ``classes``: the number of different labels by column, for columns whose labels recur.
    """

    split: str
    utterances: int
    hours: float
    speakers: int
    classes: Mapping[str, int]


def compute_stats(corpus: Corpus) -> list[SplitStats]:
    """Returns the statistics of every split, also of an empty one."""
    recurring = [
        column
        for column in sorted(corpus.columns - {"speaker"})
        if has_classes(corpus.utterances, column)
    ]
    return [_compute_split(corpus, split, recurring) for split in SPLITS]


def compare_stats(corpus: Corpus, stats: list[SplitStats], expected: ExpectedCounts) -> list[str]:
    """Returns a sentence for each number that differs from the expected one."""
    sentences = []
    for each in stats:
        sentences += _compare(
            f"utterances in {each.split}", each.utterances, expected.utterances.get(each.split)
        )
        sentences += _compare(
            f"speakers in {each.split}", each.speakers, expected.speakers.get(each.split)
        )
        hours = expected.hours.get(each.split)
        if hours is not None and abs(each.hours - hours) > max(0.05, HOURS_TOLERANCE * hours):
            sentences.append(f"hours in {each.split}: {each.hours:.1f}, expected {hours:g}")
    for column, classes in expected.classes.items():
        labels = {
            utterance.labels[column]
            for utterance in corpus.utterances
            if column in utterance.labels
        }
        sentences += _compare(f"labels in the column {column}", len(labels), classes)
    if expected.trials is not None:
        keys = {utterance.key for utterance in corpus.split("test")}
        trials = sum(key in keys for _, key, _ in corpus.trials)
        sentences += _compare("trials of test", trials, expected.trials)
    return sentences


def _compute_split(corpus: Corpus, split: str, columns: list[str]) -> SplitStats:
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


def _compare(what: str, count: int, expected: int | None) -> list[str]:
    return [] if expected in (None, count) else [f"{what}: {count:,}, expected {expected:,}"]
