"""What a task is: a row of data and one function that poses it on a corpus. The probe and its training are shared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from speechft_ray.core.errors import SpecError, UserError
from speechft_ray.core.registry import Registry
from speechft_ray.speech.corpora.base import SPLITS, Corpus, Utterance

Draws = Literal["shuffled", "balanced", "windows"]
"""How training batches are drawn; ``probe.draws`` has one generator for each."""

Splits = Mapping[str, Sequence[Utterance]]


class TaskOptions(BaseModel):
    """Base of all tasks' options: frozen, no unknown field. A task without options takes it as it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Example(NamedTuple):
    """One utterance, what its probe learns, and what its answer is compared with."""

    utterance: Utterance
    target: torch.Tensor
    """int64 ``(length,)``: token ids for CTC, one class id per label column otherwise."""
    reference: Any
    """Plain data, of the kind that ``Problem.answers`` returns."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A task posed on a corpus.

    ``head(dim)`` returns a fresh module ``(features (batch, frames, dim), frames (batch,)) -> logits``.
    ``loss(logits, frames, targets)`` returns a scalar. ``answers(logits, frames)`` returns one answer per utterance.
    ``measure(answers, references)`` returns each metric of the task over a whole split, in percent.
    ``augment(features, frames, generator)`` changes training features; ``None`` leaves them alone.
    """

    examples: Mapping[str, Sequence[Example]]
    head: Callable[[int], nn.Module]
    loss: Callable[[torch.Tensor, torch.Tensor, Sequence[torch.Tensor]], torch.Tensor]
    answers: Callable[[torch.Tensor, torch.Tensor], list[Any]]
    measure: Callable[[Sequence[Any], Sequence[Any]], dict[str, float]]
    augment: Callable[[torch.Tensor, torch.Tensor, torch.Generator], torch.Tensor] | None = None


@dataclass(frozen=True, kw_only=True)
class Task:
    """A registered SUPERB task. Every default is s3prl's; each task's file names the config and its quirks.

    ``columns``: label columns; empty when the user must name one. ``metrics``: names in the metric table; the first chooses the
    best validation. ``pooled``: whether the head needs only the mean over frames, so that the means are kept in place of the
    frames. ``pose(splits, columns, options)`` returns the ``Problem``; raises ``UserError`` for labels that cannot be learned.
    """

    name: str
    columns: tuple[str, ...]
    metrics: tuple[str, ...]
    pooled: bool
    draws: Draws
    learning_rate: float
    batch_size: int
    clip_norm: float
    options: type[TaskOptions]
    pose: Callable[[Splits, Sequence[str], Any], Problem]


TASKS: Registry[Task] = Registry("task", "speechft_ray.superb.tasks")


def tasks_for(columns: Iterable[str]) -> list[str]:
    """Returns the tasks that a corpus with these label columns allows, sorted. A task without own columns takes any."""
    present = set(columns)
    return [name for name, task in TASKS.items() if present and present.issuperset(task.columns)]


def task_options(task: Task, given: Mapping[str, Any]) -> TaskOptions:
    """Checks the options of a task. Raises ``SpecError`` with every mistake."""
    try:
        return task.options.model_validate(dict(given))
    except ValidationError as error:
        mistakes = [(".".join(map(str, item["loc"])) or "options", item["msg"]) for item in error.errors()]
        allowed = ", ".join(task.options.model_fields) or "none"
        raise SpecError(f"the options of the task `{task.name}` (allowed: {allowed})", mistakes) from None


def task_columns(task: Task, column: str | None, corpus: Corpus) -> tuple[str, ...]:
    """Returns the label columns to learn. Raises ``UserError`` naming the columns there are and the tasks they allow."""
    if column is not None and len(task.columns) > 1:
        raise UserError(f"the task `{task.name}` reads the columns {', '.join(task.columns)}: leave `column` out.")
    chosen = task.columns if column is None else (column,)
    if not chosen:
        raise UserError(f"the task `{task.name}` needs `column`, one of {_listed(corpus.columns)} (corpus `{corpus.name}`).")
    missing = set(chosen) - corpus.columns
    if missing:
        lacking = "".join(f" The column `{name}`: {corpus.absent[name]}" for name in sorted(missing & set(corpus.absent)))
        raise UserError(
            f"the task `{task.name}` needs the column {_listed(missing)}, which the corpus `{corpus.name}` does not have; its "
            f"columns {_listed(corpus.columns)} allow the tasks {_listed(tasks_for(corpus.columns))}.{lacking}"
        )
    return chosen


def task_splits(corpus: Corpus) -> dict[str, list[Utterance]]:
    """Returns the utterances of each split. Raises ``UserError`` for an empty one."""
    splits = {split: corpus.split(split) for split in SPLITS}
    empty = [split for split, utterances in splits.items() if not utterances]
    if empty:
        raise UserError(
            f"the corpus `{corpus.name}` has no utterances in the split {_listed(empty)}: a task trains on train, chooses on "
            "dev and is scored on test, so each needs some."
        )
    return splits


def label_in(utterance: Utterance, column: str) -> str:
    """Returns a label without blanks around it. Raises ``UserError`` when this utterance has none."""
    label = utterance.labels.get(column, "").strip()
    if not label:
        raise UserError(f"the utterance `{utterance.key}` has no label in the column `{column}`: add one, or leave it out.")
    return label


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names)) or "(none)"
