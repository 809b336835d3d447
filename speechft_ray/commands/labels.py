"""Checks the labels of corpora on disk before a sweep runs, so that no job fails over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from speechft_ray.core.errors import SweepError, UserError
from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.core.provenance import code_version
from speechft_ray.core.records import Place
from speechft_ray.core.specs import CorpusSpec, EvalSpec, Objective, SweepSpec
from speechft_ray.finetuning.data import load_objective
from speechft_ray.speech.corpora.base import CORPORA
from speechft_ray.stages.sources import open_corpus, start_encoder
from speechft_ray.storage.open import find_local_root
from speechft_ray.superb.setup import build_task_data
from speechft_ray.superb.tasks.base import TASKS


def check_labels(spec: SweepSpec, place: Place) -> None:
    """Builds the examples of every objective and task on corpora on disk, as their jobs do.

    Synthetic corpora are left out: they are made by jobs. What was right once is not built again
    while corpora, encoder and code are the same. Raises ``SweepError`` with every column, split and
    label that cannot be learned, and the path of what reads it.
    """
    mistakes: list[tuple[str, str]] = []
    seen: set[str] = set()

    def attempt(
        path: str,
        identity: str,
        corpora: Sequence[CorpusSpec],
        action: Callable[..., None],
        item: Any,
    ) -> None:
        """Adds the mistake of one item; equal items, as of several seeds, are checked once."""
        on_disk = [corpus for corpus in corpora if _is_on_disk(corpus)]
        if identity in seen or not on_disk:
            return
        seen.add(identity)
        mark = _find_mark(identity, on_disk, place)
        if mark.exists():
            return
        try:
            action(item, place)
        except UserError as error:
            mistakes.append((path, str(error)))
            return
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()

    for index, run in enumerate(spec.finetune):
        for number, objective in enumerate(run.objectives):
            path = f"finetune[{index}].objectives[{number}]"
            identity = objective.model_dump_json()
            attempt(path, identity, [objective.corpus], check_objective, objective)
    for index, entry in enumerate(spec.evaluate):
        identity = entry.model_dump_json(include={"task", "corpus", "column", "options", "folds"})
        attempt(f"evaluate[{index}]", identity, entry.corpora(), check_evaluation, entry)
    if mistakes:
        raise SweepError(f"the sweep `{spec.name}`", mistakes)


def _find_mark(identity: str, corpora: Sequence[CorpusSpec], place: Place) -> Path:
    """Returns the empty file that says that these labels were right."""
    content = [open_corpus(corpus, place).fingerprint for corpus in corpora]
    encoder = start_encoder(place.encoder).fingerprint
    name = fingerprint([identity, content, encoder, code_version()])
    return find_local_root(place.storage) / "corpora" / "labels" / name


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
