"""Which utterances an update learns from, and their audio.

A batch is a function of the run's seed and the update's number alone, so a resumed run needs no
position in a data stream.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from speechft_ray.finetuning.seeding import Draw, generator
from speechft_ray.speech.corpora.base import Corpus, Utterance

WINDOW_BATCHES = 8
"""Batches that are sorted by length together: enough to save most padding, few enough to leave
batches mixed."""

PART_SECONDS = 160.0
"""Padded audio that goes through the encoder at once; a longer batch is learned in parts whose
gradients add up.

HuBERT Base keeps 57 to 75 MiB of activations per second of audio (measured at 5 and 10 s per
utterance, front end frozen), so 160 s are about 12 GB; s3prl divides batches by
``gradient_accumulate_steps`` to the same end. The parts of a batch are in its result to the last
bits only.
"""

CACHE_BYTES = 512 * 2**20
"""Decoded audio that one run keeps in memory, shared by its objectives: 2.3 hours."""


class BatchOrder:
    """The batches of one objective: shuffled epochs, end to end, cut into batches.

    Batches that lie within one epoch are sorted by length in windows and the windows' batches
    shuffled. One that straddles two epochs stays as drawn: sorting across epochs would put copies
    of an utterance side by side. A corpus smaller than a batch comes round again within it.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, objective: int) -> None:
        self._lengths = np.asarray(lengths)
        self._size = batch_size
        self._seed = seed
        self._objective = objective
        self._window: tuple[int, list[np.ndarray]] = (-1, [])

    def batch(self, update: int) -> list[int]:
        """Returns the indices of the utterances of one update."""
        count = len(self._lengths)
        epoch = update * self._size // count
        if (update + 1) * self._size > (epoch + 1) * count:
            return self._stream(update, update + 1).tolist()  # type: ignore[no-any-return]
        first_of_epoch = -(-epoch * count // self._size)
        first = update - (update - first_of_epoch) % WINDOW_BATCHES
        if self._window[0] != first:
            self._window = (
                first,
                self._batches(
                    first, min(first + WINDOW_BATCHES, (epoch + 1) * count // self._size)
                ),
            )
        return self._window[1][update - first].tolist()  # type: ignore[no-any-return]

    def _batches(self, first: int, end: int) -> list[np.ndarray]:
        """Returns the batches of the updates from ``first`` to before ``end``."""
        stream = self._stream(first, end)
        batches = stream[np.argsort(self._lengths[stream], kind="stable")].reshape(
            end - first, self._size
        )
        return list(generator(self._seed, Draw.WINDOW, self._objective, first).permutation(batches))

    def _stream(self, first: int, end: int) -> np.ndarray:
        count, begin = len(self._lengths), first * self._size
        epochs = range(begin // count, (end * self._size - 1) // count + 1)
        drawn = [
            generator(self._seed, Draw.EPOCH, self._objective, epoch).permutation(count)
            for epoch in epochs
        ]
        return np.concatenate(drawn)[
            begin - epochs[0] * count : end * self._size - epochs[0] * count
        ]


class Recordings:
    """Audio of a corpus, decoded once as long as the byte budget lasts."""

    def __init__(self, corpus: Corpus, budget_bytes: int) -> None:
        self._corpus = corpus
        self._left_bytes = budget_bytes
        self._kept: dict[str, np.ndarray] = {}

    def read(self, utterance: Utterance) -> np.ndarray:
        """Returns mono float32 at 16 kHz, shape ``(samples,)``."""
        if utterance.key in self._kept:
            return self._kept[utterance.key]
        audio = np.ascontiguousarray(self._corpus.read(utterance), dtype=np.float32)
        if audio.nbytes <= self._left_bytes:
            self._kept[utterance.key] = audio
            self._left_bytes -= audio.nbytes
        return audio


def cropped(
    audio: np.ndarray, samples: int | None, draw: np.random.Generator, step_samples: int = 1
) -> tuple[np.ndarray, int]:
    """Returns a random piece of longer audio and the sample that it starts at, a multiple of a
    step; shorter audio comes whole."""
    if samples is None or len(audio) <= samples:
        return audio, 0
    start = step_samples * int(draw.integers((len(audio) - samples) // step_samples + 1))
    return audio[start : start + samples], start
