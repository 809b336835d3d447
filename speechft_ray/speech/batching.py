"""Groups utterances into batches: pure functions of sample counts at 16 kHz."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from speechft_ray.core.units import SAMPLE_RATE_HZ


class BatchRule(NamedTuple):
    """How utterances that are only encoded share batches. Which rule it is changes the last bits of
    their states alone, and so does with whom an utterance shares one (on a CPU below 2 s)."""

    padded: bool
    """Whether utterances of different lengths share a batch."""
    max_seconds: float
    """Most audio of a batch, with its padding. A longer utterance is a batch of its own."""


EQUAL_LENGTHS = BatchRule(padded=False, max_seconds=20.0)
"""For CPUs. On one core 16 utterances of 1.2 s take two thirds of the time that they take one by
one. Padded batches are as fast for such clips, but 1.3 times as slow as single utterances of 12
s."""

PADDED = BatchRule(padded=True, max_seconds=160.0)
"""For GPUs, which one utterance cannot keep busy (HuBERT Base on an A100: 626 times real time at
batch 1, 1,779 at batch 16 of 15 s; NVIDIA DeepLearningExamples, wav2vec 2.0). Base needs about 4 GB
for 160 s, two thirds of it for the first convolution."""


def choose_rule(device_type: str) -> BatchRule:
    """Returns the rule for a type of device of torch."""
    return EQUAL_LENGTHS if device_type == "cpu" else PADDED


def make_batches(samples: Sequence[int], rule: BatchRule) -> list[list[int]]:
    """Returns batches of indices by the rule, longest first."""
    arrange = batch_by_seconds if rule.padded else group_by_length
    return arrange(samples, rule.max_seconds)


def batch_by_seconds(samples: Sequence[int], max_seconds: float) -> list[list[int]]:
    """Returns batches of indices of similar length, longest first, each at most ``max_seconds`` of
    audio padded to its longest utterance.

    The longest batch comes first, so that a lack of memory shows at once. An utterance longer than
    the limit is a batch of its own. Equal lengths keep their order. Raises ``ValueError`` for a
    limit that is not positive.
    """
    limit_samples = _limit_samples(max_seconds)
    batches: list[list[int]] = []
    for index in _longest_first(samples):
        if batches and samples[batches[-1][0]] * (len(batches[-1]) + 1) <= limit_samples:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def group_by_length(samples: Sequence[int], max_seconds: float) -> list[list[int]]:
    """Returns batches like ``batch_by_seconds``, but of exactly equal sample counts, so that
    nothing is padded."""
    limit_samples = _limit_samples(max_seconds)
    groups: list[list[int]] = []
    for index in _longest_first(samples):
        last = groups[-1] if groups else []
        if (
            last
            and samples[last[0]] == samples[index]
            and samples[index] * (len(last) + 1) <= limit_samples
        ):
            last.append(index)
        else:
            groups.append([index])
    return groups


def _longest_first(samples: Sequence[int]) -> list[int]:
    return sorted(range(len(samples)), key=lambda index: -samples[index])


def _limit_samples(max_seconds: float) -> float:
    if max_seconds <= 0:
        raise ValueError(f"a batch needs a positive limit in seconds, but it is {max_seconds}")
    return max_seconds * SAMPLE_RATE_HZ
