"""Shared by the tasks with one label per utterance: mean-pooled head, cross-entropy and accuracy.

The head is linear up to the mean (s3prl ``downstream/model.py``: ``UtteranceLevel`` with mean
pooling), so means over frames, stored once per utterance, train it exactly as frames would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from speechft_ray.core.errors import UserError
from speechft_ray.core.units import FRAME_FIELD_SAMPLES, SAMPLE_RATE_HZ
from speechft_ray.speech.corpora.base import Corpus, Utterance
from speechft_ray.speech.heads.pooled import PROJECTION, PooledHead
from speechft_ray.speech.text import Vocabulary, make_unknown_labels_error
from speechft_ray.superb.measures.accuracy import accuracy, hits
from speechft_ray.superb.tasks._segments import with_crops
from speechft_ray.superb.tasks.base import (
    Example,
    LazyExamples,
    PooledHeadSpec,
    Published,
    Sampling,
    Splits,
    Task,
    TaskData,
    TaskOptions,
    get_label,
    select_splits,
)

BATCH_SIZE = 32
"""Effective batch of s3prl's SID (8 x 4 accumulated), ER (4 x 8), KS and IC (32 x 1) configs. A
mean over four batches of 8 is a mean over 32, so these are sampled at once; the two differ only
where an epoch of SID or ER ends with a smaller batch."""

CLIP_NORM = 1.0
"""``runner.gradient_clipping`` of the same configs."""


class PooledTaskOptions(TaskOptions):
    """Options of a task with one label per utterance."""

    projection: int = Field(default=PROJECTION, ge=1)
    """Width between the two linear maps (s3prl ``projector_dim``)."""
    crops: int = Field(default=0, ge=0)
    """Random crops that stand for each training utterance of more than ``crop_seconds``; every
    time the utterance is sampled, one of them is used. s3prl crops VoxCeleb1 anew every time; 0
    leaves utterances whole."""
    crop_seconds: float = Field(default=8.0, ge=FRAME_FIELD_SAMPLES / SAMPLE_RATE_HZ)
    """Length of a crop (s3prl ``voxceleb1/config.yaml``: ``max_timestep: 128000``). Not used
    without ``crops``."""


def make_label_task(
    name: str,
    columns: tuple[str, ...],
    *,
    learning_rate: float,
    sampling: Sampling = "shuffled",
    published: Published | None = None,
) -> Task:
    """Returns the row of a task that classifies utterances; its metric is ``<name>.accuracy``."""
    return Task(
        name=name,
        columns=columns,
        metrics=(f"{name}.accuracy",),
        pooled=True,
        sampling=sampling,
        learning_rate=learning_rate,
        batch_size=BATCH_SIZE,
        clip_norm=CLIP_NORM,
        options=PooledTaskOptions,
        build=make_label_builder(f"{name}.accuracy"),
        published=published,
    )


def format_first(names: Sequence[str], count: int = 5) -> str:
    """Formats the first names as a list for a sentence."""
    return ", ".join(f"`{name}`" for name in names[:count]) + (
        ", ..." if len(names) > count else ""
    )


def make_label_builder(
    metric: str,
) -> Callable[[Corpus, Sequence[str], PooledTaskOptions], TaskData]:
    """Returns the ``build`` function for one or more label columns; a prediction counts as
    right when all its labels are."""

    def build(corpus: Corpus, columns: Sequence[str], options: PooledTaskOptions) -> TaskData:
        splits = select_splits(corpus)
        vocabularies = [_make_classes(splits, column) for column in columns]
        sizes = [vocabulary.size for vocabulary in vocabularies]
        if max(sizes) == 1:
            only = vocabularies[0].symbols[0]
            raise UserError(
                f"the whole train split has one label, `{only}`, in the column `{columns[0]}`: "
                "nothing to learn."
            )
        alternatives = None
        if options.crops:
            corpus, alternatives = with_crops(
                corpus, splits, options.crops, round(options.crop_seconds * SAMPLE_RATE_HZ)
            )
            splits = select_splits(corpus)
        make = partial(_make_example, columns=columns, vocabularies=vocabularies)
        # Train may be large and is gone through once; dev and test are looked at again and again.
        examples: dict[str, Sequence[Example]] = {
            split: LazyExamples(utterances, make) if split == "train" else [*map(make, utterances)]
            for split, utterances in splits.items()
        }

        def head(dim: int) -> nn.Module:
            return PooledHead(dim, sum(sizes), options.projection)

        def loss(
            logits: torch.Tensor, frames: torch.Tensor, targets: Sequence[torch.Tensor]
        ) -> torch.Tensor:
            classes = torch.stack(list(targets)).to(logits.device)  # (batch, columns)
            parts = zip(torch.split(logits, sizes, dim=1), classes.unbind(1), strict=True)
            return torch.stack([functional.cross_entropy(part, ids) for part, ids in parts]).sum()

        def predict(logits: torch.Tensor, frames: torch.Tensor) -> list[tuple[int, ...]]:
            best = [part.argmax(dim=1) for part in torch.split(logits, sizes, dim=1)]
            return [tuple(ids) for ids in torch.stack(best, dim=1).tolist()]

        def measure(
            predictions: Sequence[tuple[int, ...]], references: Sequence[tuple[int, ...]]
        ) -> dict[str, float]:
            return {metric: accuracy(predictions, references)}

        return TaskData(
            corpus=corpus,
            examples=examples,
            head=head,
            loss=loss,
            predict=predict,
            measure=measure,
            counts=lambda predictions, references, _: {metric: list(hits(predictions, references))},
            pooled_head=PooledHeadSpec(classes=tuple(sizes)),
            alternatives=alternatives,
        )

    return build


def _make_example(
    utterance: Utterance, columns: Sequence[str], vocabularies: Sequence[Vocabulary]
) -> Example:
    pairs = zip(vocabularies, columns, strict=True)
    ids = [vocabulary.encode([get_label(utterance, column)])[0] for vocabulary, column in pairs]
    return Example(utterance, torch.tensor(ids), tuple(ids))


def _make_classes(splits: Splits, column: str) -> Vocabulary:
    """Returns the labels of train. Raises ``UserError`` when dev or test have others."""
    vocabulary = Vocabulary.of(
        (get_label(utterance, column) for utterance in splits["train"]), reserved=0
    )
    for split, utterances in splits.items():
        unknown = sorted(
            {get_label(utterance, column) for utterance in utterances} - set(vocabulary.symbols)
        )
        if unknown:
            raise make_unknown_labels_error(column, split, unknown, vocabulary)
    return vocabulary
