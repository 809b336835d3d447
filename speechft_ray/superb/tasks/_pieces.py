"""Pieces of recordings as utterances of their own, for tasks that learn from crops or chunks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.speech.corpora.base import Corpus, Utterance


class Piece(NamedTuple):
    """A stretch of a recording, in samples at 16 kHz, that belongs to a split."""

    whole: Utterance
    split: str
    start: int
    samples: int

    @property
    def utterance(self) -> Utterance:
        """The piece as an utterance; the whole keeps its key, a part has its place in it."""
        part = self.samples != self.whole.samples
        key = f"{self.whole.key}[{self.start}:{self.start + self.samples}]" if part else self.whole.key
        return replace(self.whole, key=key, split=self.split, samples=self.samples, alignment=())


def in_pieces(corpus: Corpus, pieces: Iterable[Piece]) -> Corpus:
    """Returns a corpus of pieces, which reads a recording and cuts. Alignments are dropped; trials are kept."""
    cut = [(piece, piece.utterance) for piece in pieces]
    places = {utterance.key: piece for piece, utterance in cut}

    def read(utterance: Utterance) -> np.ndarray:
        piece = places[utterance.key]
        return corpus.read(piece.whole)[piece.start : piece.start + piece.samples]

    return replace(
        corpus,
        fingerprint=fingerprint([corpus.fingerprint, [[utterance.key, utterance.split] for _, utterance in cut]]),
        utterances=tuple(utterance for _, utterance in cut),
        read=read,
    )
