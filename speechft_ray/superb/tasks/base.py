"""The registry of SUPERB tasks and what a task consists of.

A task is one row of data (``Task``) and one function that builds its examples, head, loss and
measure from a corpus (``TaskData``). All tasks share the probe and its training
(``superb.probe``).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, overload

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from speechft_ray.core.errors import UserError
from speechft_ray.core.registry import Registry
from speechft_ray.core.specs import EvalSpec
from speechft_ray.core.validation import validate
from speechft_ray.speech.corpora.base import SPLITS, Corpus, Utterance
from speechft_ray.speech.corpora.labels import MissingLabelError
from speechft_ray.superb.extractor import Advance, Features
from speechft_ray.superb.saved_work import SavedWork

Sampling = Literal["shuffled", "balanced", "windows", "buckets"]
"""How training batches are sampled; ``superb.sampling`` has one generator for each."""

Protocol = Literal["superb", "clean"]
"""``superb``: the protocol of the published numbers, faults included. ``clean``: the sound variant.
Tasks for which the two differ have the option."""

Splits = Mapping[str, Sequence[Utterance]]


class TaskOptions(BaseModel):
    """Base of all tasks' options: frozen, no unknown field. Tasks without options use it as it
    is."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Example(NamedTuple):
    """One utterance with its training target and its reference for scoring."""

    utterance: Utterance
    target: torch.Tensor
    """int64 ``(length,)``: token ids for CTC, one class id per label column; ``(frames, speakers)``
    for diarisation."""
    reference: Any
    """What ``measure`` compares a prediction with; for most tasks plain data of the same kind."""


class LazyExamples(Sequence[Example]):
    """Examples that are made from their utterances at each access, so that a large split takes no
    memory."""

    def __init__(
        self, utterances: Sequence[Utterance], make: Callable[[Utterance], Example]
    ) -> None:
        self.utterances, self._make = utterances, make

    def __len__(self) -> int:
        return len(self.utterances)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> LazyExamples: ...
    def __getitem__(self, index: int | slice) -> Example | LazyExamples:
        if isinstance(index, slice):
            return LazyExamples(self.utterances[index], self._make)
        return self._make(self.utterances[index])

    def __iter__(self) -> Iterator[Example]:
        return map(self._make, self.utterances)


def list_utterances(examples: Sequence[Example]) -> Sequence[Utterance]:
    """Returns the utterances of examples."""
    if isinstance(examples, LazyExamples):
        return examples.utterances
    return [example.utterance for example in examples]


Measure = Callable[[Sequence[Any], Sequence[Any]], dict[str, float]]
"""``(predictions, references)`` of a whole split to each metric of the task, in the unit of the
metric table. Names other than the task's metrics are reported as details of the result."""

Count = Callable[
    [Sequence[Any], Sequence[Any], Mapping[str, float]], dict[str, list[tuple[float, float]]]
]
"""``(predictions, references, metrics)`` of test to pairs by metric and utterance: the metric is
100 times the sum of the first numbers over the sum of the second
(``core.counts.UtteranceCounts``)."""

MeasureTest = Callable[
    [Sequence[Any], Sequence[Any], Sequence[Any], Sequence[Any]], dict[str, float]
]
"""``(predictions on dev, references of dev, predictions on test, references of test)`` to the
metrics of test."""


class PooledHeadSpec(NamedTuple):
    """Says that the head is ``speech.heads.pooled.PooledHead``: many such probes can be trained as
    one (``superb.stacked``)."""

    classes: tuple[int, ...]
    """Classes of each label column. The logits of all columns lie side by side in this order, and
    the loss is the sum of their cross-entropies."""


@dataclass(frozen=True, kw_only=True)
class TaskData:
    """A task built on a corpus: what a probe is trained on and scored with."""

    corpus: Corpus
    """Reads the utterances of ``examples``: the corpus of the evaluation, or one of segments cut
    from it."""
    examples: Mapping[str, Sequence[Example]]
    """By split."""
    head: Callable[[int], nn.Module]
    """``head(dim)`` returns a new module ``(features (batch, frames, dim), frames (batch,)) ->
    logits``."""
    loss: Callable[[torch.Tensor, torch.Tensor, Sequence[torch.Tensor]], torch.Tensor]
    """``(logits, frames, targets)`` to a scalar."""
    predict: Callable[[torch.Tensor, torch.Tensor], list[Any]]
    """``(logits, frames)`` to one prediction per utterance."""
    measure: Measure
    augment: Callable[[torch.Tensor, torch.Tensor, torch.Generator], torch.Tensor] | None = None
    """``(features, frames, generator)`` to augmented training features."""
    select: Callable[[Sequence[Any], Sequence[Any]], float] | None = None
    """``(predictions, references)`` of dev to a number that is highest at the best validation;
    ``None``: the task's first metric."""
    measure_test: MeasureTest | None = None
    """For tasks that choose something on dev and apply it to test; ``None``: ``measure``."""
    dev_indices: Sequence[int] | None = None
    """Indices of the dev examples that are scored; ``None``: each of them once."""
    pooled_head: PooledHeadSpec | None = None
    """Set when the head is the pooled one."""
    counts: Count | None = None
    """What the metrics are made of, utterance by utterance; ``None`` for metrics that are more than
    a sum over utterances."""
    recording_of: Callable[[Example], str] | None = None
    """The recording that an example is a part of, where ``counts`` has one pair per recording, in
    the order of their first examples; ``None``: one per example."""
    alternatives: Sequence[Sequence[int]] | None = None
    """Indices of the training examples that belong to one utterance, utterance by utterance. When
    an utterance is sampled, one of its examples is used, each with the same probability. ``None``:
    every example is an utterance."""

    def compute_test_metrics(
        self,
        dev: Sequence[Any],
        dev_references: Sequence[Any],
        test: Sequence[Any],
        references: Sequence[Any],
    ) -> dict[str, float]:
        """Returns the metrics of test, from the predictions and references of dev and test."""
        if self.measure_test is None:
            return self.measure(test, references)
        return self.measure_test(dev, dev_references, test, references)


@dataclass(frozen=True, kw_only=True)
class TrainingFreeTask:
    """A task built on a corpus that trains no probe. Its other fields are those of ``TaskData``."""

    corpus: Corpus
    examples: Mapping[str, Sequence[Example]]
    predict: Callable[[Mapping[str, Features], SavedWork, Advance], Mapping[str, Sequence[Any]]]
    """Features by split to predictions on dev and, where its features are among them, on test.
    Saves its state, goes on from it, and counts each example of train once for dev and once for
    test."""
    measure: Measure
    measure_test: MeasureTest


@dataclass(frozen=True, kw_only=True)
class Task:
    """A registered task. Every default is s3prl's; each task's file names the config and its
    quirks."""

    name: str
    columns: tuple[str, ...]
    """Label columns; empty when the user must name one."""
    metrics: tuple[str, ...]
    """Names in the metric table; the first one selects the best validation, unless ``TaskData`` has
    a ``select``."""
    pooled: bool
    """Whether the head needs only the mean over frames, so that only the means are stored."""
    sampling: Sampling
    learning_rate: float
    batch_size: int
    """Utterances of one update, in ``accumulate`` equal batches."""
    clip_norm: float
    options: type[TaskOptions]
    build: Callable[[Corpus, Sequence[str], Any], TaskData | TrainingFreeTask]
    """``(corpus, columns, options)`` to the task on this corpus. Raises ``UserError`` for labels
    that cannot be learned."""
    accumulate: int = 1
    """Batches whose gradients are added up for one update."""
    weight_decay: float = 0.0
    """Above 0 makes Adam AdamW."""
    trains: bool = True
    """Whether probes are trained: ``build`` returns a ``TaskData``."""
    dev_is_test: bool = False
    """Whether dev is test under ``protocol: superb``, as in s3prl."""
    published: Published | None = None
    """How SUPERB runs it; ``None`` for a task that is not SUPERB's."""
    version: int = 1
    """Raised when the task's results change. It is part of the identity of the task's evaluations,
    but only where it is not 1, so that version 1 keeps older fingerprints."""


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


def check_task_options(task: Task, options: Mapping[str, Any]) -> TaskOptions:
    """Returns the options of a task as its model. Raises ``SpecError`` with every mistake, and with
    the nearest name for an unknown option."""
    return validate(task.options, dict(options), where=f"task `{task.name}`")


def uses_test_as_dev(entry: EvalSpec) -> bool:
    """Whether what is selected on dev of an evaluation is selected on its test set."""
    is_clean = entry.options.get("protocol") == "clean"
    return TASKS.get(entry.task).dev_is_test and not is_clean


def select_columns(
    task: Task,
    column: str | None,
    corpus: str,
    available: frozenset[str],
    reasons: Mapping[str, str] = MappingProxyType({}),
) -> tuple[str, ...]:
    """Returns the label columns to learn, of those ``available`` in a corpus. ``reasons``: why it
    lacks others. Raises ``UserError`` naming the corpus' columns and the tasks they allow."""
    if column is not None and len(task.columns) > 1:
        raise UserError(
            f"the task `{task.name}` reads the columns {', '.join(task.columns)}: leave `column` "
            "out."
        )
    columns = task.columns if column is None else (column,)
    if not columns:
        raise UserError(
            f"the task `{task.name}` needs `column`, one of {_format_names(available)} "
            f"(corpus `{corpus}`)."
        )
    missing = set(columns) - available
    if missing:
        explained = "".join(
            f" The column `{name}`: {reasons[name]}" for name in sorted(missing & set(reasons))
        )
        near = difflib.get_close_matches(min(missing), sorted(available), n=1)
        hint = f" Did you mean `{near[0]}`?" if column is not None and near else ""
        raise UserError(
            f"the task `{task.name}` needs the column {_format_names(missing)}, which the corpus "
            f"`{corpus}` does not have; its columns {_format_names(available)} allow the "
            f"tasks {_format_names(list_allowed_tasks(available))}.{hint}{explained}"
        )
    return columns


def select_splits(corpus: Corpus, names: Sequence[str] = SPLITS) -> dict[str, Sequence[Utterance]]:
    """Returns the utterances of the named splits. Raises ``UserError`` for an empty one."""
    splits = {split: corpus.split(split) for split in names}
    empty = [split for split, utterances in splits.items() if not utterances]
    if empty:
        raise UserError(
            f"the corpus `{corpus.name}` has no utterances in the split {_format_names(empty)}: a "
            "task trains on train, chooses on dev and is scored on test, so each needs some."
        )
    return splits


def get_label(utterance: Utterance, column: str) -> str:
    """Returns a label without surrounding blanks. Raises ``MissingLabelError`` if the utterance has
    none."""
    label = utterance.labels.get(column, "").strip()
    if not label:
        raise MissingLabelError(utterance, column)
    return label


def _format_names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names)) or "(none)"
