"""Batches: seeded, complete, short on padding, and a function of the update alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from speechft_ray.finetuning.batches import WINDOW_BATCHES, AudioCache, BatchSampler, crop
from speechft_ray.speech.corpora.base import Utterance
from tests.finetuning.toy_models import corpus

LENGTHS = list(np.random.default_rng(0).integers(16_000, 160_000, 64))


def _sampler(
    seed: int = 0, objective: int = 0, size: int = 4, lengths: list[int] = LENGTHS
) -> BatchSampler:
    return BatchSampler(lengths, size, seed, objective)


def test_every_epoch_takes_every_utterance_once() -> None:
    sampler = _sampler()
    for epoch in range(3):
        seen = [
            index
            for update in range(16 * epoch, 16 * epoch + 16)
            for index in sampler.batch(update)
        ]
        assert sorted(seen) == list(range(64))


def test_an_update_has_its_batch_whatever_was_asked_before() -> None:
    sampler = _sampler()
    straight = [sampler.batch(update) for update in range(40)]
    for update in (39, 3, 17, 17, 0):
        assert sampler.batch(update) == straight[update] == _sampler().batch(update)


def test_seeds_and_objectives_have_orders_of_their_own() -> None:
    samplers = [_sampler(), _sampler(seed=1), _sampler(objective=1)]
    sequences = [
        tuple(index for update in range(8) for index in sampler.batch(update))
        for sampler in samplers
    ]
    assert len(set(sequences)) == 3


def test_batches_hold_utterances_of_like_length_in_mixed_order() -> None:
    sampler = _sampler()
    chosen = [sampler.batch(update) for update in range(64)]
    spread = np.mean([np.ptp([LENGTHS[index] for index in batch]) for batch in chosen])
    assert spread < 0.5 * np.mean(
        [np.ptp(np.random.default_rng(k).choice(LENGTHS, 4)) for k in range(64)]
    )
    longest = [max(LENGTHS[index] for index in batch) for batch in chosen[:WINDOW_BATCHES]]
    assert longest != sorted(longest)


def test_a_corpus_smaller_than_a_batch_comes_round_again() -> None:
    sampler = _sampler(size=7, lengths=[1000, 2000, 3000])
    batches_of_three = [Counter(sampler.batch(update)) for update in range(24)]
    assert all(
        sum(batch.values()) == 7 and set(batch.values()) <= {1, 2, 3} and len(batch) == 3
        for batch in batches_of_three
    )
    assert sum(batches_of_three, Counter()) == {0: 56, 1: 56, 2: 56}


@pytest.mark.parametrize(("count", "size"), [(86, 16), (17, 8), (9, 8), (8, 8), (300, 32)])
def test_no_batch_within_an_epoch_holds_an_utterance_twice(count: int, size: int) -> None:
    sampler = _sampler(size=size, lengths=list(range(1000, 1000 + count)))
    stream = [sampler.batch(update) for update in range(3 * count)]
    for update, batch in enumerate(stream):
        if update * size // count == ((update + 1) * size - 1) // count:
            assert len(set(batch)) == size
    seen = Counter(index for batch in stream for index in batch)
    assert set(seen.values()) == {3 * size}


def test_crops_are_pieces_of_the_audio() -> None:
    audio = np.arange(100, dtype=np.float32)
    pieces = [crop(audio, 40, np.random.default_rng(seed)) for seed in range(300)]
    assert {start for _, start in pieces} == {int(piece[0]) for piece, _ in pieces}
    assert {0, 60} <= {start for _, start in pieces} <= set(range(61))
    assert all(len(piece) == 40 and (np.diff(piece) == 1).all() for piece, _ in pieces)
    assert {crop(audio, 40, np.random.default_rng(seed), 16)[1] for seed in range(100)} == {
        0,
        16,
        32,
        48,
    }
    for longest in (100, None):
        assert crop(audio, longest, np.random.default_rng(0)) == (audio, 0)


def test_audio_is_read_once_while_the_budget_lasts() -> None:
    tones = corpus({"train": 2})
    reads: list[str] = []

    def read(utterance: Utterance) -> np.ndarray:
        reads.append(utterance.key)
        return tones.read(utterance)

    audio_caches = AudioCache(
        corpus({"train": 2}, read=read), budget_bytes=4 * tones.utterances[0].samples
    )
    for _ in range(3):
        for utterance in tones.utterances:
            np.testing.assert_array_equal(audio_caches.read(utterance), tones.read(utterance))
    assert Counter(reads) == {"train-0": 1, "train-1": 3}
