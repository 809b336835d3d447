"""Batches: every utterance once, within the limit, and groups of equal length without padding."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from speechft_ray.speech.batching import (
    EQUAL_LENGTHS,
    PADDED,
    batch_by_seconds,
    choose_rule,
    group_by_length,
    make_batches,
)

LENGTHS = [random.Random(3).choice((8_000, 12_000, 16_000, 16_001, 30_000)) for _ in range(200)]


@pytest.mark.parametrize("arrange", [batch_by_seconds, group_by_length])
def test_every_utterance_once_and_no_batch_over_the_limit(
    arrange: Callable[[Sequence[int], float], list[list[int]]],
) -> None:
    batches = arrange(LENGTHS, 5.0)
    assert sorted(index for batch in batches for index in batch) == list(range(200))
    assert all(max(LENGTHS[index] for index in batch) * len(batch) <= 80_000 for batch in batches)
    firsts = [LENGTHS[batch[0]] for batch in batches]
    assert firsts == sorted(firsts, reverse=True)


def test_a_worked_example() -> None:
    assert batch_by_seconds([16_000, 48_000, 15_000, 32_000, 16_000], 2.0) == [
        [1],
        [3],
        [0, 4],
        [2],
    ]
    assert batch_by_seconds([16_000, 48_000, 15_000, 32_000, 16_000], 4.0) == [
        [1],
        [3, 0],
        [4, 2],
    ]
    assert group_by_length([16_000, 48_000, 15_000, 32_000, 16_000], 4.0) == [
        [1],
        [3],
        [0, 4],
        [2],
    ]


def test_equal_groups_are_equal_and_full() -> None:
    groups = group_by_length(LENGTHS, 5.0)
    assert all(len({LENGTHS[index] for index in group}) == 1 for group in groups)
    for length in set(LENGTHS):
        sizes = [len(group) for group in groups if LENGTHS[group[0]] == length]
        assert all(size == 80_000 // length for size in sizes[:-1])


def test_gpus_pad_and_cpus_do_not() -> None:
    assert choose_rule("cpu") == EQUAL_LENGTHS
    assert choose_rule("cuda") == PADDED
    assert make_batches(LENGTHS, EQUAL_LENGTHS) == group_by_length(LENGTHS, 20.0)
    assert make_batches(LENGTHS, PADDED) == batch_by_seconds(LENGTHS, 160.0)


def test_little_of_a_padded_batch_is_padding() -> None:
    """Lengths around 12 s as in LibriSpeech, in batches of 160 s."""
    draw = random.Random(0)
    lengths = [round(16_000 * min(16.5, max(1.5, draw.gauss(12, 3.5)))) for _ in range(2_000)]
    batches = batch_by_seconds(lengths, 160.0)
    padded = sum(max(lengths[index] for index in batch) * len(batch) for batch in batches)
    assert padded / sum(lengths) < 1.02


def test_no_utterances_give_no_batches_and_a_limit_must_be_positive() -> None:
    assert batch_by_seconds([], 1.0) == group_by_length([], 1.0) == []
    with pytest.raises(ValueError, match="positive"):
        batch_by_seconds([1], 0.0)
