"""Pieces of recordings as utterances of their own, for tasks that learn from crops or chunks."""

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
"""Places of training examples that are one utterance, utterance by utterance."""


class Segment(NamedTuple):
    """A stretch of a recording, in samples at 16 kHz, that belongs to a split."""

    whole: Utterance
    split: str
    start: int
    samples: int

    @property
    def utterance(self) -> Utterance:
        """The piece as an utterance; the whole keeps its key, a part has its place in it."""
        part = self.samples != self.whole.samples
        key = (
            f"{self.whole.key}[{self.start}:{self.start + self.samples}]"
            if part
            else self.whole.key
        )
        return replace(self.whole, key=key, split=self.split, samples=self.samples, alignment=())


def crops_of(utterance: Utterance, count: int, samples: int) -> list[Segment]:
    """Returns ``count`` random crops of an utterance of train that is longer than ``samples``, else
    the whole of it.

    Each begins elsewhere, and every beginning is equally likely; they follow from the utterance's
    key. One that is hardly longer has as many as fit.
    """
    spare = utterance.samples - samples
    if spare <= 0:
        return [Segment(utterance, "train", 0, utterance.samples)]
    starts = random.Random(f"crops {utterance.key}").sample(range(spare + 1), min(count, spare + 1))
    return [Segment(utterance, "train", start, samples) for start in starts]


def with_crops(
    corpus: Corpus, splits: Mapping[str, Sequence[Utterance]], count: int, samples: int
) -> tuple[Corpus, Groups]:
    """Returns a corpus of these splits whose training utterances are crops (``crops_of``), and
    which of them belong together.

    Dev and test stay whole.
    """
    of_each = [crops_of(utterance, count, samples) for utterance in splits["train"]]
    ends = list(accumulate(map(len, of_each)))
    groups = [range(end - len(pieces), end) for end, pieces in zip(ends, of_each, strict=True)]
    whole = [
        Segment(utterance, split, 0, utterance.samples)
        for split, items in splits.items()
        if split != "train"
        for utterance in items
    ]
    return cut_into_segments(corpus, [*chain.from_iterable(of_each), *whole]), groups


def cut_into_segments(corpus: Corpus, pieces: Iterable[Segment]) -> Corpus:
    """Returns a corpus of pieces, which reads a recording and cuts. Alignments are dropped; trials
    are kept."""
    cut = [(piece, piece.utterance) for piece in pieces]
    places = {utterance.key: piece for piece, utterance in cut}

    def read(utterance: Utterance) -> np.ndarray:
        piece = places[utterance.key]
        return corpus.read(piece.whole)[piece.start : piece.start + piece.samples]

    return replace(
        corpus,
        fingerprint=fingerprint(
            [corpus.fingerprint, [[utterance.key, utterance.split] for _, utterance in cut]]
        ),
        utterances=tuple(utterance for _, utterance in cut),
        read=read,
    )
