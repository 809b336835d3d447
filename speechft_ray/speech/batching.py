"""Groups utterances into batches: pure functions of sample counts at 16 kHz."""

from __future__ import annotations

from collections.abc import Sequence

from speechft_ray.core.units import SAMPLE_RATE_HZ


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
    nothing is padded.

    In encoders with a group norm over time (HuBERT, wav2vec 2.0 and WavLM Base) padding changes
    every feature. Only without padding are features independent of the other utterances of a batch.
    """
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
