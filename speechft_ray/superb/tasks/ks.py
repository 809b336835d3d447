"""Task ``ks``: which spoken keyword (SUPERB on Speech Commands v0.01; s3prl
``speech_commands/config.yaml``).

Training samples utterances with replacement so that every class is equally likely. Quirk: s3prl
samples dev in the same way, as many times as dev has utterances, so that the best checkpoint is
selected on a resampled dev, the same at every validation of a run. ``protocol: clean`` counts each
utterance of dev once, which removes that noise from the selection.

The gain of -3 dB and the random crops of the silence recordings belong to the corpus. s3prl leaves
out the last, smaller batch of each epoch; here it is one more random batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from speechft_ray.speech.corpora.base import Corpus
from speechft_ray.superb.tasks._pooled import PooledTaskOptions, make_label_builder, make_label_task
from speechft_ray.superb.tasks.base import TASKS, Protocol, Published, TaskData

DEV_SEED = 1337
"""s3prl seeds its random numbers with this before every evaluation (``run_downstream.py``)."""


class KsOptions(PooledTaskOptions):
    """Options of keyword spotting."""

    protocol: Protocol = "superb"
    """``superb``: dev is resampled so that its classes are balanced. ``clean``: dev as it is."""


def build(corpus: Corpus, columns: Sequence[str], options: KsOptions) -> TaskData:
    """Builds the task; the top of this file says what ``options.protocol`` changes."""
    data = _build_labels(corpus, columns, options)
    if options.protocol == "clean":
        return data
    return replace(
        data,
        dev_indices=sample_balanced([example.reference for example in data.examples["dev"]]),
    )


def sample_balanced(labels: Sequence[tuple[int, ...]]) -> list[int]:
    """Returns as many indices as there are labels, sampled with replacement, every class equally
    likely."""
    classes = torch.tensor(labels)[:, 0]
    weights = 1.0 / classes.bincount().double()[classes]
    generator = torch.Generator().manual_seed(DEV_SEED)
    indices: list[int] = torch.multinomial(
        weights, len(classes), replacement=True, generator=generator
    ).tolist()
    return indices


_build_labels = make_label_builder("ks.accuracy")

PUBLISHED = Published("speech_commands", 200_000, 5_000)

_LABELS = make_label_task(
    "ks", ("keyword",), learning_rate=1e-4, sampling="balanced", published=PUBLISHED
)

TASKS.register("ks", replace(_LABELS, options=KsOptions, build=build))
