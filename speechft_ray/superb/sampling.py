"""Samples training batches: shuffled, class-balanced, windows of neighbours, buckets by length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from speechft_ray.superb.extractor import Indices
from speechft_ray.superb.probe import Schedule
from speechft_ray.superb.tasks.base import Example

WINDOW_SAMPLES = 300_000
"""Audio (18.75 s) from which on a window of utterances is cut to its first half (s3prl
``ctc/corpus/libriphone.py``)."""


def sample_batches(
    schedule: Schedule,
    examples: Sequence[Example],
    generator: torch.Generator,
    alternatives: Sequence[Sequence[int]] | None = None,
) -> Iterator[Indices]:
    """Yields training batches without end, by ``schedule.sampling``.

    With ``alternatives`` (see ``TaskData``), utterances are sampled as if each were one example,
    and then one of its examples.
    """
    if alternatives is None:
        yield from _sample(schedule, examples, generator)
        return
    counts = torch.tensor([len(indices) for indices in alternatives])
    table = nn.utils.rnn.pad_sequence(
        [torch.tensor(list(indices)) for indices in alternatives], batch_first=True
    )
    first_examples = [examples[indices[0]] for indices in alternatives]
    for batch in _sample(schedule, first_examples, generator):
        utterances = torch.arange(len(counts))[batch]
        uniform = torch.rand(len(utterances), generator=generator, dtype=torch.float64)
        yield table[utterances, (uniform * counts[utterances]).long()]


def _sample(
    schedule: Schedule, examples: Sequence[Example], generator: torch.Generator
) -> Iterator[Indices]:
    size = min(schedule.batch_size, len(examples))
    if schedule.sampling == "windows":
        return sliding_windows([item.utterance.samples for item in examples], size, generator)
    if schedule.sampling == "buckets":
        return length_buckets([item.utterance.samples for item in examples], size, generator)
    if schedule.sampling == "balanced":
        classes = torch.tensor([int(item.target[0]) for item in examples])
        return class_balanced_batches(classes, size, generator)
    return random_epochs(len(examples), size, generator)


def random_epochs(count: int, size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Yields epochs in random order; the last batch of an epoch may be smaller."""
    while True:
        yield from torch.split(torch.randperm(count, generator=generator), size)


def class_balanced_batches(
    classes: torch.Tensor, size: int, generator: torch.Generator
) -> Iterator[torch.Tensor]:
    """Yields samples with replacement in which every class is equally likely (s3prl
    ``speech_commands/expert.py``)."""
    weights = 1.0 / classes.bincount().double()[classes]
    while True:
        yield from torch.split(
            torch.multinomial(weights, len(classes), replacement=True, generator=generator), size
        )


def sliding_windows(
    samples: Sequence[int], size: int, generator: torch.Generator
) -> Iterator[slice]:
    """Yields neighbours: an epoch has one window from every utterance on, in random order (s3prl
    ``ctc/corpus/libriphone.py``).

    Utterances are sorted by the length of their targets, so neighbours need little padding, and a
    window of stored features is a view of them. A window whose first utterance has more than
    ``WINDOW_SAMPLES`` is halved.
    """
    while True:
        for index in torch.randperm(len(samples), generator=generator).tolist():
            start = min(index, len(samples) - size)
            halved = samples[start] > WINDOW_SAMPLES
            yield slice(start, start + (max(1, size // 2) if halved else size))


def length_buckets(
    samples: Sequence[int], size: int, generator: torch.Generator
) -> Iterator[torch.Tensor]:
    """Yields fixed batches of neighbours by audio length, in random order (s3prl
    ``asr/dataset.py``).

    Buckets of twice ``size``, longest first, are cut in two. What remains below a full bucket is
    one batch, or is left out if it is a single utterance.
    """
    order = torch.tensor(sorted(range(len(samples)), key=lambda index: -samples[index]))
    in_full_buckets = len(order) // (2 * size) * 2 * size
    batches = list(torch.split(order[:in_full_buckets], size)) if in_full_buckets else []
    if len(order) - in_full_buckets > 1 or not batches:
        batches.append(order[in_full_buckets:])
    while True:
        for index in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[index]
