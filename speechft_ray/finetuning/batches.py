"""Batches of utterances, and their audio.

A batch depends on the run's seed and the update's number alone, so a resumed run needs no position
in a data stream.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from speechft_ray.finetuning.seeding import Stream, make_generator
from speechft_ray.speech.corpora.base import Corpus, Utterance

WINDOW_BATCHES = 8
"""Batches that are sorted by length together: enough to save most padding, few enough to leave
batches mixed."""

MICRO_BATCH_SECONDS = 160.0
"""Padded audio that goes through the encoder at once; the gradients of a longer batch are
accumulated over micro-batches.

HuBERT Base keeps 57 to 75 MiB of activations per second of audio (measured at 5 and 10 s per
utterance, front end frozen), so 160 s are about 12 GB. s3prl divides batches by
``gradient_accumulate_steps`` to the same end. The size of the micro-batches changes results in the
last bits only.
"""

CACHE_BYTES = 512 * 2**20
"""Decoded audio that one run keeps in memory, shared by its objectives: 2.3 hours."""


class BatchSampler:
    """Samples the batches of one objective: shuffled epochs, concatenated and cut into batches.

    Batches within one epoch are sorted by length in windows, and the batches of a window are
    shuffled. A batch that spans two epochs stays as drawn: sorting across epochs would put copies
    of an utterance side by side. A corpus smaller than a batch is repeated within it.
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
            end = min(first + WINDOW_BATCHES, (epoch + 1) * count // self._size)
            self._window = (first, self._window_batches(first, end))
        return self._window[1][update - first].tolist()  # type: ignore[no-any-return]

    def _window_batches(self, first: int, end: int) -> list[np.ndarray]:
        """Returns the batches of the updates from ``first`` to before ``end``, sorted by length
        and shuffled."""
        stream = self._stream(first, end)
        batches = stream[np.argsort(self._lengths[stream], kind="stable")].reshape(
            end - first, self._size
        )
        return list(
            make_generator(self._seed, Stream.WINDOW, self._objective, first).permutation(batches)
        )

    def _stream(self, first: int, end: int) -> np.ndarray:
        """Returns the utterances of the updates from ``first`` to before ``end``, as drawn."""
        count, begin = len(self._lengths), first * self._size
        epochs = range(begin // count, (end * self._size - 1) // count + 1)
        orders = [
            make_generator(self._seed, Stream.EPOCH, self._objective, epoch).permutation(count)
            for epoch in epochs
        ]
        return np.concatenate(orders)[
            begin - epochs[0] * count : end * self._size - epochs[0] * count
        ]


class AudioCache:
    """Audio of a corpus, decoded once as long as the byte budget lasts.

    The reading thread and validation share it.
    """

    def __init__(self, corpus: Corpus, budget_bytes: int) -> None:
        self._corpus = corpus
        self._left_bytes = budget_bytes
        self._audio: dict[str, np.ndarray] = {}
        self._lock = threading.Lock()

    def read(self, utterance: Utterance) -> np.ndarray:
        """Returns mono float32 at 16 kHz, shape ``(samples,)``."""
        if utterance.key in self._audio:
            return self._audio[utterance.key]
        audio = np.ascontiguousarray(self._corpus.read(utterance), dtype=np.float32)
        with self._lock:
            if utterance.key not in self._audio and audio.nbytes <= self._left_bytes:
                self._audio[utterance.key] = audio
                self._left_bytes -= audio.nbytes
        return audio


def crop(
    audio: np.ndarray, samples: int | None, rng: np.random.Generator, step_samples: int = 1
) -> tuple[np.ndarray, int]:
    """Returns a random crop of ``samples`` and its first sample, a multiple of ``step_samples``.

    Audio that is not longer is returned whole.
    """
    if samples is None or len(audio) <= samples:
        return audio, 0
    start = step_samples * int(rng.integers((len(audio) - samples) // step_samples + 1))
    return audio[start : start + samples], start
