"""Turns the spec of an evaluation into the task on its corpus, the schedule and the learning
rates."""

from __future__ import annotations

from dataclasses import replace

from speechft_ray.core.errors import UserError
from speechft_ray.core.specs import EvalSpec
from speechft_ray.speech.corpora.base import Corpus
from speechft_ray.speech.corpora.labels import MissingLabelError, describe_missing_labels
from speechft_ray.superb.probe import Schedule
from speechft_ray.superb.tasks.base import (
    Task,
    TaskData,
    TrainingFreeTask,
    check_task_options,
    select_columns,
)

GRID = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""Learning rates of ``learning_rate: grid``: SUPERB's authors explored five per encoder and task,
on a log scale from 1e-1 down (s3prl issues 120 and 498)."""


def build_task_data(task: Task, spec: EvalSpec, corpus: Corpus) -> TaskData | TrainingFreeTask:
    """Builds the task of an evaluation on its corpus. Raises ``UserError`` for a column, split,
    label or option that does not fit.

    Tasks that sample windows get the examples of each split with the longest targets first.
    """
    options = check_task_options(task, spec.options)
    check_patience(task, spec)
    columns = select_columns(task, spec.column, corpus.name, corpus.columns, corpus.missing_columns)
    try:
        data = task.build(corpus, columns, options)
    except MissingLabelError as error:
        raise UserError(
            f"the corpus `{corpus.name}`: "
            f"{describe_missing_labels(corpus.utterances, error.column)}; the task `{task.name}` "
            "needs one everywhere: add it, or leave such utterances out."
        ) from None
    if task.sampling != "windows":
        return data
    longest_first = {
        split: sorted(examples, key=lambda example: -len(example.target))
        for split, examples in data.examples.items()
    }
    return replace(data, examples=longest_first)


def check_patience(task: Task, spec: EvalSpec) -> None:
    """Raises ``UserError`` for a patience that can end no training: of a task that trains no probe,
    or with too few validations."""
    if spec.patience is None:
        return
    if not task.trains:
        raise UserError(
            f"the task `{task.name}` trains no probe, so it has no validations: leave `patience` "
            "out."
        )
    interval = _validation_interval(spec)
    if (spec.patience + 1) * interval >= spec.updates:
        raise UserError(
            f"`patience: {spec.patience}` cannot end a training of {spec.updates} updates that "
            f"validates every {interval}: set `validate_every_updates` below "
            f"{-(-spec.updates // (spec.patience + 1))}, or leave `patience` out."
        )


def _validation_interval(spec: EvalSpec) -> int:
    return spec.validate_every_updates or max(1, spec.updates // 10)


def make_schedule(task: Task, spec: EvalSpec) -> Schedule:
    """Returns how the probe is trained: by the spec, and by the task where the spec is silent.

    A batch size of the spec is one batch; the task's own may be several accumulated ones. Of
    several learning rates, the schedule has the first.
    """
    return Schedule(
        updates=spec.updates,
        validate_every_updates=_validation_interval(spec),
        learning_rate=select_learning_rates(task, spec)[0],
        batch_size=spec.batch_size or task.batch_size // task.accumulate,
        clip_norm=task.clip_norm,
        sampling=task.sampling,
        metric=task.metrics[0],
        accumulate=1 if spec.batch_size else task.accumulate,
        weight_decay=task.weight_decay,
        patience=spec.patience,
    )


def select_learning_rates(task: Task, spec: EvalSpec) -> list[float]:
    """Returns the learning rates to train with, without duplicates."""
    rates = spec.learning_rate
    if rates is None:
        return [task.learning_rate]
    if rates == "grid":
        rates = GRID
    return list(dict.fromkeys(rates if isinstance(rates, tuple) else [float(rates)]))
