"""Checks of a sweep spec that need the registries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pydantic import ValidationError

from speechft_ray.core.errors import SpecError, SweepError, UserError, unknown_name
from speechft_ray.core.merge_spec import MergeSpec
from speechft_ray.core.metrics import metrics_of
from speechft_ray.core.specs import CorpusSpec, EvalSpec, Objective, SweepSpec
from speechft_ray.core.validation import validate
from speechft_ray.merging.base import METHODS, validate_params
from speechft_ray.speech.corpora.base import CORPORA, SPLITS, Estimate
from speechft_ray.speech.heads.base import HEADS, check_head_options
from speechft_ray.superb.setup import check_patience
from speechft_ray.superb.tasks.base import TASKS, check_task_options, select_columns

Mistakes = list[tuple[str, str]]


def check_names(spec: SweepSpec) -> None:
    """Checks every name and option against the registries.

    Raises ``SpecError`` with all mistakes and their paths.
    """
    mistakes: Mistakes = []

    def attempt(
        path: str, action: Callable[..., object], *arguments: Any, options: str = ""
    ) -> None:
        """``options`` is the field with the options that the action validates, if not ``path``."""
        try:
            action(*arguments)
        except SpecError as error:
            inside = options or path
            mistakes.extend((f"{inside}.{inner}", text) for inner, text in error.mistakes)
        except UserError as error:
            mistakes.append((path, str(error)))

    for index, run in enumerate(spec.finetune):
        for number, objective in enumerate(run.objectives):
            path = f"finetune[{index}].objectives[{number}]"
            attempt(f"{path}.head", HEADS.get, objective.head)
            if objective.head in HEADS.names():
                options = (objective.head, objective.options)
                attempt(f"{path}.options", check_head_options, *options)
            attempt(
                f"{path}.corpus.name",
                _check_corpus,
                objective.corpus,
                ("train", "dev"),
                options=f"{path}.corpus.options",
            )
            attempt(f"{path}.column", _check_objective_column, objective)
        if run.after:
            merge = MergeSpec(
                method=run.after.method, params=run.after.params, donors=(run.after.finetune,)
            )
            attempt(
                f"finetune[{index}].after.method",
                validate_params,
                merge.method,
                merge.params,
                1,
                options=f"finetune[{index}].after.params",
            )
            attempt(f"finetune[{index}].after.method", check_statistics, merge, spec)
    for index, item in enumerate(spec.merge):
        attempt(
            f"merge[{index}].method",
            validate_params,
            item.method,
            item.params,
            1 if item.donors == "each" else len(item.donors),
            options=f"merge[{index}].params",
        )
        attempt(f"merge[{index}].method", check_statistics, item, spec)
        attempt(f"merge[{index}].checkpoint", check_checkpoint, item, spec)
    for index, entry in enumerate(spec.evaluate):
        attempt(f"evaluate[{index}].task", check_task, entry, spec)
        if entry.task in TASKS.names():
            task = TASKS.get(entry.task)
            attempt(f"evaluate[{index}].options", check_task_options, task, entry.options)
            attempt(f"evaluate[{index}].patience", check_patience, task, entry)
        for corpus in entry.corpora():
            attempt(
                f"evaluate[{index}].corpus.name",
                _check_corpus,
                corpus,
                SPLITS,
                options=f"evaluate[{index}].corpus.options",
            )
            attempt(f"evaluate[{index}].column", _check_task_column, entry, corpus)
    if mistakes:
        raise SweepError(f"the sweep `{spec.name}`", list(dict.fromkeys(mistakes)))


def _check_corpus(spec: CorpusSpec, splits: Sequence[str]) -> None:
    """Checks the options of a corpus, and that one that is synthesised has these splits."""
    kind = CORPORA.get(spec.name)
    validate(kind.options, dict(spec.options), where=f"corpus `{spec.name}`")
    estimate = _estimate(spec)
    if empty := [split for split in splits if estimate and not estimate.utterances[split]]:
        raise UserError(
            f"the corpus `{spec.name}` has no utterances in {' and '.join(empty)}, which this "
            "needs: raise the number."
        )


def _check_objective_column(objective: Objective) -> None:
    estimate = _estimate(objective.corpus)
    if estimate and objective.column and objective.column not in estimate.columns:
        raise UserError(unknown_name("label column", objective.column, estimate.columns))


def _check_task_column(entry: EvalSpec, corpus: CorpusSpec) -> None:
    estimate = _estimate(corpus)
    if estimate and entry.task in TASKS.names():
        select_columns(TASKS.get(entry.task), entry.column, corpus.name, estimate.columns)


def _estimate(spec: CorpusSpec) -> Estimate | None:
    """Returns what is known of a corpus that is synthesised; ``None`` for others, and where its
    options are wrong, which ``_check_corpus`` tells."""
    kind = CORPORA.get(spec.name) if spec.name in CORPORA.names() else None
    if kind is None or kind.estimate is None:
        return None
    try:
        return kind.estimate(kind.options.model_validate(dict(spec.options)))
    except ValidationError:
        return None


def check_statistics(merge: MergeSpec, spec: SweepSpec) -> None:
    """Raises ``UserError`` where a merge needs statistics that a donor does not gather.

    An unknown method passes.
    """
    needs = METHODS.get(merge.method).gather if merge.method in METHODS.names() else None
    without = [
        run.name
        for run in spec.finetune
        if merge.donors == "each" or run.name in merge.donors
        if needs not in run.gather
    ]
    if needs and without:
        raise UserError(
            f"`{merge.method}` needs {needs} statistics of the donors' tuning sets: "
            f"set `gather: [{needs}]` for the fine-tuning of {', '.join(dict.fromkeys(without))}."
        )


def check_checkpoint(merge: MergeSpec, spec: SweepSpec) -> None:
    """Raises ``UserError`` for a merge of early checkpoints that a donor does not keep.

    Statistics are gathered with the best checkpoint alone, so methods that need them are refused.
    """
    if merge.checkpoint == "best":
        return
    without = [
        run.name
        for run in spec.finetune
        if merge.donors == "each" or run.name in merge.donors
        if merge.checkpoint not in run.keep_at
    ]
    if without:
        raise UserError(
            f"the fine-tuning of {', '.join(dict.fromkeys(without))} keeps no weights at "
            f"{merge.checkpoint:g} of its updates: add it to `keep_at`, or name other `donors`."
        )
    if merge.method in METHODS.names() and METHODS.get(merge.method).needs:
        raise UserError(
            f"`{merge.method}` needs statistics, which are gathered with the `best` checkpoint "
            "alone: merge that."
        )


def check_task(entry: EvalSpec, spec: SweepSpec) -> None:
    """Checks a task's name, and that the score has a zero and a one for its metrics."""
    TASKS.get(entry.task)  # raises for an unknown name
    for metric in metrics_of(entry.task, entry.name) if entry.in_score else ():
        if spec.score.zero == "measured" and metric.name not in spec.score.topline:
            raise UserError(
                f"`score.topline` lacks `{metric.name}`: state the value that counts as 1000."
            )
        if spec.score.zero == "paper" and metric.fbank is None:
            raise UserError(
                f"the paper has no reference for `{metric.name}`: "
                "use `score: {zero: measured, topline: ...}`."
            )
