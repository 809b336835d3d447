"""Cuts recordings into segments that are utterances of their own, for tasks that train on crops or
chunks."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, chain
from typing import NamedTuple

import numpy as np

from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.speech.corpora.base import Corpus, Utterance

Groups = Sequence[Sequence[int]]
"""Indices of the training examples that belong to one utterance, utterance by utterance."""


class Segment(NamedTuple):
    """A part of a recording, in samples at 16 kHz, that belongs to a split."""

    whole: Utterance
    split: str
    start: int
    samples: int

    @property
    def utterance(self) -> Utterance:
        """The segment as an utterance. A whole recording keeps its key; a part has its position in
        the key."""
        part = self.samples != self.whole.samples
        key = (
            f"{self.whole.key}[{self.start}:{self.start + self.samples}]"
            if part
            else self.whole.key
        )
        return replace(self.whole, key=key, split=self.split, samples=self.samples, alignment=())


def make_crops(utterance: Utterance, count: int, samples: int) -> list[Segment]:
    """Returns ``count`` random crops of a training utterance that is longer than ``samples``, else
    the whole utterance.

    All starts differ, and every start is equally likely; they follow from the utterance's key. An
    utterance that is hardly longer than a crop has as many crops as it has starts.
    """
    spare = utterance.samples - samples
    if spare <= 0:
        return [Segment(utterance, "train", 0, utterance.samples)]
    starts = random.Random(f"crops {utterance.key}").sample(range(spare + 1), min(count, spare + 1))
    return [Segment(utterance, "train", start, samples) for start in starts]


def with_crops(
    corpus: Corpus, splits: Mapping[str, Sequence[Utterance]], count: int, samples: int
) -> tuple[Corpus, Groups]:
    """Returns a corpus of these splits whose training utterances are crops (``make_crops``), and
    the crops of each utterance by index.

    Dev and test stay whole.
    """
    by_utterance = [make_crops(utterance, count, samples) for utterance in splits["train"]]
    ends = list(accumulate(map(len, by_utterance)))
    groups = [range(end - len(crops), end) for end, crops in zip(ends, by_utterance, strict=True)]
    whole = [
        Segment(utterance, split, 0, utterance.samples)
        for split, items in splits.items()
        if split != "train"
        for utterance in items
    ]
    return cut_into_segments(corpus, [*chain.from_iterable(by_utterance), *whole]), groups


def cut_into_segments(corpus: Corpus, segments: Iterable[Segment]) -> Corpus:
    """Returns a corpus of segments, which reads a recording and cuts it. Alignments are dropped;
    trials stay."""
    pairs = [(segment, segment.utterance) for segment in segments]
    segment_of = {utterance.key: segment for segment, utterance in pairs}

    def read(utterance: Utterance) -> np.ndarray:
        segment = segment_of[utterance.key]
        return corpus.read(segment.whole)[segment.start : segment.start + segment.samples]

    return replace(
        corpus,
        fingerprint=fingerprint(
            [corpus.fingerprint, [[utterance.key, utterance.split] for _, utterance in pairs]]
        ),
        utterances=tuple(utterance for _, utterance in pairs),
        read=read,
    )
