"""Makes a small sweep of a large one, which takes the same road in a minute: ``run --smoke``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speechft_ray.core.merge_spec import MergeSpec
from speechft_ray.core.specs import (
    CorpusSpec,
    EvalSpec,
    FinetuneSpec,
    SearchSpec,
    SweepSpec,
)
from speechft_ray.speech.corpora.base import CORPORA
from speechft_ray.storage.address import append_suffix

SUFFIX = "-smoke"
SCALE = 100
FEWEST_UTTERANCES = {"train": 24, "dev": 4, "test": 6}
"""Below this some tasks lack classes, and pairs of one speaker."""
FEWEST_UPDATES, MOST_UPDATES = 6, 20
MOST_SPEAKERS = 4
LARGEST_BATCH = 8
MOST_RUNS, MOST_RUNS_OF_SEARCH = 1, 2
"""Fine-tuning runs of one name and earlier stage; a search may choose between them."""
SYNTHETIC = "synthetic"


def shrink_sweep(spec: SweepSpec) -> SweepSpec:
    """Returns a sweep with every stage, objective, method and task of this one, and a hundredth of
    their updates, utterances, seeds, merges and trials.

    Its name ends in ``-smoke``, and its results are other units. Corpora on disk are not cut.
    """
    runs = _select_runs(spec.finetune, MOST_RUNS_OF_SEARCH if spec.search else MOST_RUNS)
    return spec.model_copy(
        update={
            "name": f"{spec.name[: 80 - len(SUFFIX)]}{SUFFIX}",
            "finetune": tuple(map(_shrink_run, runs)),
            "merge": _select_merges(spec.merge),
            "search": _shrink_search(spec.search) if spec.search else None,
            "evaluate": tuple(map(_shrink_evaluation, spec.evaluate)),
        }
    )


def rename_storage(storage: str | Path) -> str:
    """Returns the storage of small sweeps, beside that of real ones."""
    return append_suffix(storage, SUFFIX)


def _select_runs(runs: Sequence[FinetuneSpec], most: int) -> list[FinetuneSpec]:
    """Returns the first runs of every name and earlier stage, all of one seed, so that they can be
    merged."""
    selected: list[FinetuneSpec] = []
    for run in runs:
        alike = sum(_name_stage(other) == _name_stage(run) for other in selected)
        if run.seed == runs[0].seed and alike < most:
            selected.append(run)
    return selected


def _name_stage(run: FinetuneSpec) -> tuple[str, str | None]:
    return run.name, run.after.finetune if run.after else None


def _select_merges(merges: Sequence[MergeSpec]) -> tuple[MergeSpec, ...]:
    """Returns the first merge between 0 and 1 of every method, set of donors and checkpoint, and
    the first that is predicted."""
    by_kind: dict[tuple[Any, ...], MergeSpec] = {}
    for merge in sorted(merges, key=lambda merge: merge.alpha in (0.0, 1.0)):
        kind = (merge.method, merge.donors, merge.checkpoint, merge.control)
        by_kind.setdefault((*kind, bool(merge.predicted_from)), merge)
    return tuple(by_kind.values())


def _shrink_run(run: FinetuneSpec) -> FinetuneSpec:
    updates = _cut(run.updates, FEWEST_UPDATES, MOST_UPDATES)
    objectives = [
        objective.model_copy(
            update={
                "corpus": _shrink_corpus(objective.corpus),
                "batch_size": min(objective.batch_size, LARGEST_BATCH),
            }
        )
        for objective in run.objectives
    ]
    return run.model_copy(
        update={
            "objectives": tuple(objectives),
            "updates": updates,
            "validate_every_updates": max(1, updates // 2),
        }
    )


def _shrink_search(search: SearchSpec) -> SearchSpec:
    trials = max(3, search.trials // SCALE)
    return search.model_copy(update={"trials": trials, "max_concurrent": 2})


def _shrink_evaluation(item: EvalSpec) -> EvalSpec:
    updates = _cut(item.updates, FEWEST_UPDATES, MOST_UPDATES)
    return item.model_copy(
        update={
            "corpus": _shrink_corpus(item.corpus),
            "updates": updates,
            "validate_every_updates": max(1, updates // 2),
            "batch_size": min(item.batch_size or LARGEST_BATCH, LARGEST_BATCH),
            "seeds": 1,
            "folds": {name: values[:2] for name, values in item.folds.items()},
        }
    )


def _shrink_corpus(corpus: CorpusSpec) -> CorpusSpec:
    if corpus.name != SYNTHETIC:
        return corpus
    options = CORPORA.get(SYNTHETIC).options.model_validate(corpus.options).model_dump()
    sizes = {
        name: min(options[name], max(fewest, options[name] // SCALE))
        for name, fewest in FEWEST_UTTERANCES.items()
    }
    speakers = {"speakers": min(options["speakers"], MOST_SPEAKERS)}
    return corpus.model_copy(update={"options": {**corpus.options, **sizes, **speakers}})


def _cut(updates: int, fewest: int, most: int) -> int:
    return min(updates, max(fewest, min(most, updates // SCALE)))
