"""What a task is: a row of data and one function that poses it on a corpus. The probe and its
training are shared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from speechft_ray.core.errors import SpecError, UserError
from speechft_ray.core.registry import Registry
from speechft_ray.speech.corpora.base import SPLITS, Corpus, Utterance
from speechft_ray.superb.features import Features

Sampling = Literal["shuffled", "balanced", "windows", "buckets"]
"""How training batches are drawn; ``probe.sample_batches`` has one generator for each."""

Protocol = Literal["superb", "clean"]
"""``superb``: as published numbers were made, faults included. ``clean``: the sound variant. Tasks
that differ have the option."""

Splits = Mapping[str, Sequence[Utterance]]


class TaskOptions(BaseModel):
    """Base of all tasks' options: frozen, no unknown field. A task without options takes it as it
    is."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Example(NamedTuple):
    """One utterance, what its probe learns, and what its answer is compared with."""

    utterance: Utterance
    target: torch.Tensor
    """int64 ``(length,)``: token ids for CTC, one class id per label column; ``(frames, speakers)``
    for diarisation."""
    reference: Any
    """What ``measure`` compares an answer with; for most tasks plain data of the same kind."""


Measure = Callable[[Sequence[Any], Sequence[Any]], dict[str, float]]
"""``(predictions, references)`` of a whole split to each metric of the task, in the unit of the metric
table. Other names than the task's metrics are details of the result, for people to read."""

Count = Callable[
    [Sequence[Any], Sequence[Any], Mapping[str, float]], dict[str, list[tuple[float, float]]]
]
"""``(predictions, references)`` of test and what was measured of them, to pairs by metric and
utterance: the metric is 100 times the sum of the first numbers over that of the second
(``core.counts.UtteranceCounts``)."""

MeasureTest = Callable[
    [Sequence[Any], Sequence[Any], Sequence[Any], Sequence[Any]], dict[str, float]
]
"""``(predictions on dev, references of dev, predictions on test, references of test)`` to the metrics of
test."""


class PooledHeadSpec(NamedTuple):
    """Says that the head is ``speech.heads.pooled.PooledHead``: many such probes can be trained as
    one (``superb.stacked``)."""

    classes: tuple[int, ...]
    """Classes of each label column; logits lie side by side in this order, and the loss is the sum
    of their cross-entropies."""


@dataclass(frozen=True, kw_only=True)
class TaskData:
    """A task posed on a corpus, for a probe to learn.

    ``corpus`` reads the utterances of ``examples``: the given corpus, or one of pieces cut from it.
    ``head(dim)`` returns a fresh module ``(features (batch, frames, dim), frames (batch,)) ->
    logits``. ``loss(logits, frames, targets)`` returns a scalar. ``predict(logits, frames)``
    returns one answer per utterance. ``augment(features, frames, generator)`` changes training
    features; ``None`` leaves them alone. ``select(predictions, references)`` returns a number that is
    highest at the best validation; ``None``: the task's first metric. ``measure_test`` is there
    when something of test is decided on dev; ``None``: ``measure``. ``dev_indices`` are the examples
    of dev that count, where that is not each of them once. ``alternatives`` are the places of the
    training examples that stand for one utterance, utterance by utterance: whenever it is drawn,
    one of them is taken, each as likely as the others. ``None``: every example is an utterance.
    ``pooled_head`` is there when the head is the pooled one. ``counts`` tells what makes the metrics,
    utterance by utterance; ``None`` for metrics that are more than a sum over these.
    """

    corpus: Corpus
    examples: Mapping[str, Sequence[Example]]
    head: Callable[[int], nn.Module]
    loss: Callable[[torch.Tensor, torch.Tensor, Sequence[torch.Tensor]], torch.Tensor]
    predict: Callable[[torch.Tensor, torch.Tensor], list[Any]]
    measure: Measure
    augment: Callable[[torch.Tensor, torch.Tensor, torch.Generator], torch.Tensor] | None = None
    select: Callable[[Sequence[Any], Sequence[Any]], float] | None = None
    measure_test: MeasureTest | None = None
    dev_indices: Sequence[int] | None = None
    pooled_head: PooledHeadSpec | None = None
    counts: Count | None = None
    alternatives: Sequence[Sequence[int]] | None = None

    def compute_test_metrics(
        self,
        dev: Sequence[Any],
        dev_references: Sequence[Any],
        test: Sequence[Any],
        references: Sequence[Any],
    ) -> dict[str, float]:
        """Returns the metrics of test."""
        if self.measure_test is None:
            return self.measure(test, references)
        return self.measure_test(dev, dev_references, test, references)


@dataclass(frozen=True, kw_only=True)
class TrainingFreeTask:
    """A task posed on a corpus that nothing is trained for.

    ``predict(prepare_features)`` returns the predictions on dev and, where it is among the sources, on test,
    given the features of each split; the other fields are those of ``TaskData``.
    """

    corpus: Corpus
    examples: Mapping[str, Sequence[Example]]
    predict: Callable[[Mapping[str, Features]], Mapping[str, Sequence[Any]]]
    measure: Measure
    measure_test: MeasureTest


@dataclass(frozen=True, kw_only=True)
class Task:
    """A registered SUPERB task. Every default is s3prl's; each task's file names the config and its
    quirks.

    ``columns``: label columns; empty when the user must name one. ``metrics``: names in the metric
    table; the first chooses the best validation, unless the problem has a ``select``. ``pooled``:
    whether the head needs only the mean over frames, so that the means are kept in place of the
    frames. ``batch_size`` utterances make an update, drawn and learned in ``accumulate`` equal
    parts. ``weight_decay`` above 0 makes Adam AdamW. ``build(corpus, columns, options)`` returns the
    ``TaskData``, or the ``TrainingFreeTask`` of a task without training; raises ``UserError`` for labels that
    cannot be learned.
    """

    name: str
    columns: tuple[str, ...]
    metrics: tuple[str, ...]
    pooled: bool
    sampling: Sampling
    learning_rate: float
    batch_size: int
    clip_norm: float
    options: type[TaskOptions]
    build: Callable[[Corpus, Sequence[str], Any], TaskData | TrainingFreeTask]
    accumulate: int = 1
    weight_decay: float = 0.0
    published: Published | None = None
    """How SUPERB runs it; ``None`` for a task that is not SUPERB's."""


class Published(NamedTuple):
    """The corpus and steps of a published evaluation (s3prl's configs; ``docs/superb.md``)."""

    corpus: str
    updates: int
    validate_every_updates: int | None = None
    corpus_options: Mapping[str, Any] = MappingProxyType({})
    folds: Mapping[str, tuple[Any, ...]] = MappingProxyType({})
    """An option of the corpus with a value for each fold, as in ``EvalSpec.folds``."""


TASKS: Registry[Task] = Registry("task", "speechft_ray.superb.tasks")


def list_allowed_tasks(columns: Iterable[str]) -> list[str]:
    """Returns the tasks that a corpus with these label columns allows, sorted. A task without own
    columns takes any."""
    present = set(columns)
    return [name for name, task in TASKS.items() if present and present.issuperset(task.columns)]


def check_task_options(task: Task, given: Mapping[str, Any]) -> TaskOptions:
    """Checks the options of a task. Raises ``SpecError`` with every mistake."""
    try:
        return task.options.model_validate(dict(given))
    except ValidationError as error:
        mistakes = [
            (".".join(map(str, item["loc"])) or "options", item["msg"]) for item in error.errors()
        ]
        allowed = ", ".join(task.options.model_fields) or "none"
        raise SpecError(
            f"the options of the task `{task.name}` (allowed: {allowed})", mistakes
        ) from None


def select_columns(task: Task, column: str | None, corpus: Corpus) -> tuple[str, ...]:
    """Returns the label columns to learn. Raises ``UserError`` naming the columns there are and the
    tasks they allow."""
    if column is not None and len(task.columns) > 1:
        raise UserError(
            f"the task `{task.name}` reads the columns {', '.join(task.columns)}: leave `column` out."
        )
    chosen = task.columns if column is None else (column,)
    if not chosen:
        raise UserError(
            f"the task `{task.name}` needs `column`, one of {_listed(corpus.columns)} (corpus `{corpus.name}`)."
        )
    missing = set(chosen) - corpus.columns
    if missing:
        lacking = "".join(
            f" The column `{name}`: {corpus.missing_columns[name]}"
            for name in sorted(missing & set(corpus.missing_columns))
        )
        raise UserError(
            f"the task `{task.name}` needs the column {_listed(missing)}, which the corpus `{corpus.name}` does not have; its "
            f"columns {_listed(corpus.columns)} allow the tasks {_listed(list_allowed_tasks(corpus.columns))}.{lacking}"
        )
    return chosen


def select_splits(corpus: Corpus, needed: Sequence[str] = SPLITS) -> dict[str, list[Utterance]]:
    """Returns the utterances of each split that is needed. Raises ``UserError`` for an empty
    one."""
    splits = {split: corpus.split(split) for split in needed}
    empty = [split for split, utterances in splits.items() if not utterances]
    if empty:
        raise UserError(
            f"the corpus `{corpus.name}` has no utterances in the split {_listed(empty)}: a task trains on train, chooses on "
            "dev and is scored on test, so each needs some."
        )
    return splits


def get_label(utterance: Utterance, column: str) -> str:
    """Returns a label without blanks around it. Raises ``UserError`` when this utterance has
    none."""
    label = utterance.labels.get(column, "").strip()
    if not label:
        raise UserError(
            f"the utterance `{utterance.key}` has no label in the column `{column}`: add one, or leave it out."
        )
    return label


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names)) or "(none)"
