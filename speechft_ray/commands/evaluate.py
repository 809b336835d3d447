"""One encoder on some tasks, outside any sweep: the same jobs in the same store, so that a sweep
finds them done, and back."""

from __future__ import annotations

import statistics
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from speechft_ray.commands.executors import OnDemandExecutor
from speechft_ray.commands.labels import check_evaluation
from speechft_ray.commands.parts import plan_inputs
from speechft_ray.commands.results import print_failures
from speechft_ray.core.errors import UserError
from speechft_ray.core.metrics import metric
from speechft_ray.core.records import STAGES, Job, Outcome, Place, read_scores
from speechft_ray.core.specs import EvalSpec
from speechft_ray.core.store import Store
from speechft_ray.core.validation import validate
from speechft_ray.report.progress import ProgressDisplay
from speechft_ray.speech.corpora.base import CORPORA
from speechft_ray.speech.corpora.manifest import find_manifest
from speechft_ray.speech.synthesis.parts import PARTS
from speechft_ray.stages.perform import publish_start
from speechft_ray.storage.open import mark_storage, open_store
from speechft_ray.superb.setup import check_patience
from speechft_ray.superb.tasks.base import TASKS, check_task_options
from speechft_ray.sweep.plan import FBANK, PlanBuilder
from speechft_ray.sweep.scheduler import JobScheduler, missing_jobs, perform_jobs

SYNTHETIC_PARTS = {"asr": "pr", "asr_zh": "zh", "asv": "sid", "chars": "pr"}
"""Parts of the synthetic corpus by task; other tasks have one of their own name, and ``label`` has
none: its corpus and its column are what it is about."""


def make_evaluation(
    task: str, corpus: Path | None, overrides: Mapping[str, Any]
) -> tuple[EvalSpec, dict[str, str]]:
    """Returns the spec of an evaluation and where its corpus lies.

    ``overrides`` are fields of ``EvalSpec`` and ``corpus_options``; the published protocol of the
    task fills the rest. ``corpus`` is the folder of the task's own corpus, a manifest, or ``None``
    for the synthetic one of the task. Raises ``UserError`` where a task has no published protocol
    and ``overrides`` has no updates, or no synthetic corpus and ``corpus`` is ``None``, and
    ``SpecError`` with every mistake.
    """
    own = TASKS.get(task).published
    fields: dict[str, Any] = {
        "task": task,
        **{name: value for name, value in overrides.items() if value is not None},
    }
    options = dict(fields.pop("corpus_options", None) or {})
    name = "synthetic"
    if corpus is None:
        part = SYNTHETIC_PARTS.get(task, task)
        if part in PARTS:
            options = {"part": part, **options}
        elif "part" not in options:
            raise UserError(
                f"the task `{task}` is for recordings of your own: say where they are and which "
                "column has their labels, with --corpus FILE --column NAME."
            )
    else:
        is_manifest = find_manifest(corpus).is_file()
        name = "manifest" if is_manifest or own is None else own.corpus
        if own is not None and not is_manifest:
            options = {**own.corpus_options, **options}
            fields.setdefault(
                "folds", {key: value for key, value in own.folds.items() if key not in options}
            )
    if own is not None:
        fields.setdefault("updates", own.updates)
        if "updates" not in overrides or overrides["updates"] is None:
            fields.setdefault("validate_every_updates", own.validate_every_updates)
    if "updates" not in fields:
        raise UserError(
            f"the task `{task}` has no published number of updates: say how many with --updates."
        )
    kind = CORPORA.get(name)
    validate(kind.options, options, where=f"corpus `{name}`")
    spec = validate(
        EvalSpec,
        {**fields, "corpus": {"name": name, "options": options}},
        where=f"the evaluation `{task}`",
    )
    check_task_options(TASKS.get(task), spec.options)
    check_patience(TASKS.get(task), spec)
    return spec, {name: str(corpus.expanduser().absolute())} if corpus is not None else {}


def evaluate_tasks(
    tasks: Sequence[str],
    corpus: Path | None,
    overrides: Mapping[str, Any],
    place: Place,
    address: str | None,
    stop: threading.Event,
    console: Console | None = None,
) -> dict[str, Mapping[str, Any] | None]:
    """Evaluates the encoder of ``place`` on tasks and returns the facts of each, from the store
    where they are there; ``None`` for one that failed.

    ``corpus`` and ``overrides`` as in ``make_evaluation``. Notes and progress go to ``console``, by
    default standard output. Raises ``UserError`` before anything is
    computed when the input is wrong, and ``Interrupted`` when ``stop`` was set.
    """
    if twice := [task for task, count in Counter(tasks).items() if count > 1]:
        raise UserError(f"the task `{twice[0]}` is named twice: name it once.")
    # Every mistake is found before anything is computed.
    specs, roots = [], dict(place.roots)
    for task in tasks:
        spec, own_roots = make_evaluation(task, corpus, overrides)
        specs.append(spec)
        roots |= own_roots
    place = place.model_copy(update={"roots": roots, "manifest": roots.get("manifest")})
    store = open_store(place.storage)
    store.check_writable()
    builder = PlanBuilder(plan_inputs(place))
    merged = None if place.encoder == FBANK else builder.add_pretrained()[0]
    keys = [builder.add_evaluation(spec, merged, Path(place.encoder).name) for spec in specs]
    for spec in specs:
        check_evaluation(spec, place)
    missing = missing_jobs(keys, builder.jobs, store)
    failed: list[Outcome] = []
    if missing:
        place = place.model_copy(update={"storage_id": mark_storage(store)})
        if merged:
            publish_start(place)
        console = console or Console()
        executor = OnDemandExecutor(address, place, console.print, stop=stop)
        display = _display(missing, console)
        scheduler = JobScheduler(executor, display, lambda outcome: None, stop)
        try:
            failed = [outcome for outcome in perform_jobs(missing, scheduler) if not outcome.ok]
        finally:
            executor.stop()
    results: dict[str, Mapping[str, Any] | None] = {}
    explained = {outcome.fingerprint for outcome in failed}
    for task, key in zip(tasks, keys, strict=True):
        is_there = store.look_again("evaluate", key)
        results[task] = store.manifest("evaluate", key) if is_there else None
        if not is_there and key not in explained:
            failed.append(_make_loss(builder.jobs[key], store))
    print_failures(failed)
    return results


def _make_loss(job: Job, store: Store) -> Outcome:
    """Returns the outcome of a job that has ended well and whose unit is not in the store."""
    error = f"its result is no longer in {store.address}: give the same command again"
    return Outcome(stage=job.stage, fingerprint=job.fingerprint, label=job.label, error=error)


def print_evaluations(evaluations: Mapping[str, Mapping[str, Any]], console: Console) -> None:
    """Prints each evaluation, below the name of its task where there are several."""
    for name, facts in evaluations.items():
        if len(evaluations) > 1:
            console.print(name, style="bold")
        print_evaluation(facts, console)


def print_evaluation(facts: Mapping[str, Any], console: Console) -> None:
    """Prints every metric on dev and test with its spread over probe seeds, and what was chosen."""
    table = Table("metric", "dev", "test", box=None, pad_edge=False)
    by_split = {(score.metric, score.split): score.values for score in read_scores(facts)}
    for name in dict.fromkeys(name for name, _ in by_split):
        table.add_row(
            metric(name).title,
            *(_with_spread(name, by_split.get((name, split), ())) for split in ("dev", "test")),
        )
    console.print(table)
    seeds = f"{facts['seeds']} probe seed{'s' if facts['seeds'] != 1 else ''}"
    rate = facts["learning_rate"]
    chosen = f"rate {rate:g}" if isinstance(rate, float) else f"rates by fold {_join(rate)}"
    console.print(f"learning {chosen}, {facts['updates']} updates, {seeds}", highlight=False)
    if "last_update" in facts:
        patience, ended = facts["spec"]["patience"], facts["last_update"]
        by_fold = "; ".join(map(_join, ended)) if isinstance(ended[0], list) else _join(ended)
        console.print(f"patience {patience}: training ended at update {by_fold}", highlight=False)
    for note in facts.get("notes", []):
        console.print(f"note: {note}", highlight=False, markup=False)
    skipped = {split: count for split, count in facts.get("skipped", {}).items() if count}
    if skipped:
        counts = ", ".join(f"{count} of {split}" for split, count in skipped.items())
        console.print(f"left out, since they cannot be read: {counts}", highlight=False)


def _join(numbers: Iterable[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)


def _display(missing: Mapping[str, Any], console: Console) -> ProgressDisplay:
    totals: dict[str, int] = {
        stage: sum(job.stage == stage for job in missing.values()) for stage in STAGES
    }
    return ProgressDisplay(totals, {}, console=console)


def _with_spread(name: str, values: tuple[float, ...]) -> str:
    if not values:
        return ""
    mean = metric(name).format(statistics.fmean(values))
    return mean if len(values) == 1 else f"{mean} ± {metric(name).format(statistics.stdev(values))}"
