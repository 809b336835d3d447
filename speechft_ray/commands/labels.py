"""Checks the labels of corpora on disk before a sweep runs, so that no job fails over them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from speechft_ray.core.errors import SweepError, UserError
from speechft_ray.core.records import Place
from speechft_ray.core.specs import CorpusSpec, EvalSpec, Objective, SweepSpec
from speechft_ray.finetuning.data import load_objective
from speechft_ray.speech.corpora.base import CORPORA
from speechft_ray.stages.perform import open_corpus, start_encoder
from speechft_ray.superb.setup import build_task_data
from speechft_ray.superb.tasks.base import TASKS


def check_labels(spec: SweepSpec, place: Place) -> None:
    """Builds the examples of every objective and task on corpora on disk, as their jobs do.

    Synthetic corpora are left out: they are made by jobs. Raises ``SweepError`` with every column,
    split and label that cannot be learned, and the path of what reads it.
    """
    mistakes: list[tuple[str, str]] = []
    checked: set[str] = set()

    def attempt(path: str, identity: str, action: Callable[..., None], item: Any) -> None:
        """Adds the mistake of one item; equal items, as of several seeds, are checked once."""
        if identity in checked:
            return
        checked.add(identity)
        try:
            action(item, place)
        except UserError as error:
            mistakes.append((path, str(error)))

    for index, run in enumerate(spec.finetune):
        for number, objective in enumerate(run.objectives):
            path = f"finetune[{index}].objectives[{number}]"
            attempt(path, objective.model_dump_json(), check_objective, objective)
    for index, entry in enumerate(spec.evaluate):
        identity = entry.model_dump_json(include={"task", "corpus", "column", "options", "folds"})
        attempt(f"evaluate[{index}]", identity, check_evaluation, entry)
    if mistakes:
        raise SweepError(f"the sweep `{spec.name}`", mistakes)


def check_objective(objective: Objective, place: Place) -> None:
    """Loads the examples of an objective, if its corpus is on disk. Raises ``UserError`` for what
    cannot be learned."""
    if _is_on_disk(objective.corpus):
        weights = start_encoder(place.encoder).weights
        load_objective(objective, open_corpus(objective.corpus, place), weights)


def check_evaluation(spec: EvalSpec, place: Place) -> None:
    """Builds the task on each corpus of an evaluation, where it is on disk. Raises ``UserError``
    for what cannot be learned or scored."""
    for corpus in spec.corpora():
        if _is_on_disk(corpus):
            build_task_data(TASKS.get(spec.task), spec, open_corpus(corpus, place))


def _is_on_disk(corpus: CorpusSpec) -> bool:
    return CORPORA.get(corpus.name).needs_root
