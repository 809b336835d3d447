"""Wires real parts together: checks every name of a spec, makes the plan, runs it, writes the report."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from speechft_ray.core.errors import SpecError, UserError
from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.core.metrics import metrics_of
from speechft_ray.core.records import STAGES, Job, Outcome, Place, Stage
from speechft_ray.core.resources import ResourceRequest
from speechft_ray.core.specs import CorpusSpec, EvalSpec, MergeSpec, SweepSpec
from speechft_ray.core.store import Store
from speechft_ray.core.validation import validated
from speechft_ray.exchange import bring
from speechft_ray.leaks import leaks
from speechft_ray.merging.base import METHODS, check
from speechft_ray.speech.checkpoints.catalogue import is_name
from speechft_ray.speech.corpora.base import CORPORA, Corpus
from speechft_ray.speech.heads.base import head_options
from speechft_ray.stages import open_corpus, perform, publish_start, start_encoder
from speechft_ray.superb.tasks.base import TASKS, task_options
from speechft_ray.sweep.chosen import record_choice
from speechft_ray.sweep.display import Display
from speechft_ray.sweep.intervals import counts_of
from speechft_ray.sweep.local import LocalExecutor
from speechft_ray.sweep.lock import driver_lock
from speechft_ray.sweep.pipeline import needed_jobs, run_plan
from speechft_ray.sweep.plan import Inputs, Plan, make_plan
from speechft_ray.sweep.protocols import Executor, Tracker
from speechft_ray.sweep.publishing import Publisher, sweep_info
from speechft_ray.sweep.report import Findings, write_report
from speechft_ray.sweep.rows import curves, references, rows
from speechft_ray.sweep.search_summary import SearchFindings
from speechft_ray.sweep.stops import stopped_jobs
from speechft_ray.sweep.summary import groups
from speechft_ray.sweep.table import failure_lines, terminal_table

RESOURCES: Mapping[Stage, ResourceRequest] = {
    "corpus": ResourceRequest(cpus=1),
    "finetune": ResourceRequest(cpus=1, gpus=1),
    "merge": ResourceRequest(cpus=1),
    "evaluate": ResourceRequest(cpus=1, gpus=0.5),
}
"""What a job of each stage asks for; a cluster without GPUs gives CPUs instead. Two probes share a GPU: a frozen encoder and
a small head leave it half idle."""

Mistakes = list[tuple[str, str]]


REPORT_COLUMNS = 110
"""Width of the table in a log file, where nothing tells a width."""


def check_names(spec: SweepSpec) -> None:
    """Checks every name and option that only the registries know. Raises ``SpecError`` with all mistakes and their paths."""
    mistakes: Mistakes = []

    def attempt(path: str, action: Callable[..., object], *arguments: Any) -> None:
        try:
            action(*arguments)
        except SpecError as error:
            mistakes.extend((f"{path}.{inner}", text) for inner, text in error.mistakes)
        except UserError as error:
            mistakes.append((path, str(error)))

    for index, run in enumerate(spec.finetune):
        for number, objective in enumerate(run.objectives):
            path = f"finetune[{index}].objectives[{number}]"
            attempt(f"{path}.head", head_options, objective.head, objective.options)
            attempt(f"{path}.corpus", _corpus_options, objective.corpus)
        if run.after:
            merge = MergeSpec(method=run.after.method, params=run.after.params, donors=(run.after.finetune,))
            attempt(f"finetune[{index}].after", check, merge.method, merge.params, 1)
            attempt(f"finetune[{index}].after.method", gathered, merge, spec)
    for index, item in enumerate(spec.merge):
        attempt(f"merge[{index}]", check, item.method, item.params, 1 if item.donors == "each" else len(item.donors))
        attempt(f"merge[{index}].method", gathered, item, spec)
        attempt(f"merge[{index}].checkpoint", kept, item, spec)
    for index, entry in enumerate(spec.evaluate):
        attempt(f"evaluate[{index}].task", _task, entry, spec)
        for corpus in entry.corpora():
            attempt(f"evaluate[{index}].corpus", _corpus_options, corpus)
    if mistakes:
        raise SpecError(f"the sweep `{spec.name}`", list(dict.fromkeys(mistakes)))


def plan_sweep(spec: SweepSpec, place: Place) -> Plan:
    """Checks a spec against everything it names and returns its plan. Reads the encoder and the user's own corpora.

    An encoder that is known by name alone is downloaded, even for a plan that nobody runs: identity is content.
    """
    check_names(spec)
    bring(place.encoder)
    _, encoder = start_encoder(place.encoder)
    return make_plan(spec, Inputs(encoder=encoder, corpus=lambda item: corpus_identity(item, place), resources=RESOURCES))


def corpus_identity(spec: CorpusSpec, place: Place) -> tuple[str, bool]:
    """Returns the identity of a corpus and whether a job must make it before it can be read."""
    kind = CORPORA.get(spec.name)
    if kind.needs_root:
        return _opened_aloud(spec, place).fingerprint, False
    options = kind.options.model_validate(spec.options)
    return fingerprint({"corpus": spec.name, "options": options, "version": kind.version}), True


def _opened_aloud(spec: CorpusSpec, place: Place) -> Corpus:
    """Opens a corpus on disk with a progress bar, and says once what reading it changes or leaves out."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        files = bars.add_task(f"measuring {spec.name}", total=None)
        corpus = open_corpus(spec, place, lambda done, total: bars.update(files, completed=done, total=total))
    for note in corpus.notes:
        if (corpus.fingerprint, note) not in _TOLD:
            _TOLD.add((corpus.fingerprint, note))
            console.print(f"note: {corpus.name}: {note}", markup=False)
    return corpus


_TOLD: set[tuple[str, str]] = set()


def place_for(
    spec: SweepSpec,
    *,
    storage: Path,
    encoder: str | None = None,
    corpora: Path | None = None,
    manifest: Path | None = None,
    cpu: bool = False,
) -> Place:
    """Returns where this run finds and leaves things; every path is made absolute, since workers start elsewhere."""
    return Place(
        storage=str(storage.expanduser().absolute()),
        encoder=encoder_at(encoder or spec.encoder),
        corpora=str(corpora.expanduser().absolute()) if corpora else None,
        manifest=str(manifest.expanduser().absolute()) if manifest else None,
        device="cpu" if cpu else "auto",
    )


def encoder_at(name: str) -> str:
    """Returns a name as it is and a path made absolute.

    A name of the catalogue means that encoder even where a file is called the same; ``./NAME`` is the file.
    """
    path = Path(name).expanduser()
    return name if is_name(name) or not path.exists() else str(path.absolute())


def run_sweep(
    spec: SweepSpec, place: Place, address: str | None, report: Path, mlflow_uri: str | None, stop: threading.Event
) -> list[Outcome]:
    """Runs what is missing of a sweep on a cluster (``None``: in this process), writes its report, returns the failures.

    Raises ``UserError`` before anything is computed when the input is wrong, and ``Interrupted`` when ``stop`` was set.
    """
    store = Store(Path(place.storage))
    plan = plan_sweep(spec, place)
    missing = needed_jobs(plan, store)
    if any(job.stage in ("finetune", "merge") for job in missing.values()):
        publish_start(place)
    executor = open_executor(address, place) if missing else None
    failures: list[Outcome] = []
    status = "stopped"
    with driver_lock(store.root, plan.fingerprint), _display(plan, missing, stopped_jobs(plan, store)) as display:
        publisher = Publisher(plan, store, open_trackers(spec, store, mlflow_uri), display.note)
        publisher.start()
        try:
            if executor:
                failures = run_plan(plan, store, executor, display, publisher.outcome, stop)
            status = "failed" if failures else "finished"
        finally:
            if executor:
                executor.stop()
            views = publish(plan, store, publisher, report, failures, status, place)
    say_result(plan, store, report, views)
    failed_lines_to_stderr(failures)
    return failures


def publish_again(spec: SweepSpec, place: Place, report: Path, mlflow_uri: str | None) -> None:
    """Writes the report from the store, and sends trackers what they lack."""
    store, console = Store(Path(place.storage)), Console()
    plan = plan_sweep(spec, place)
    publisher = Publisher(plan, store, open_trackers(spec, store, mlflow_uri), console.print)
    publisher.start()
    status = "stopped" if needed_jobs(plan, store) else "finished"
    say_result(plan, store, report, publish(plan, store, publisher, report, [], status, place))


def pretrain_tiny(out: Path, work: Path) -> None:
    """Pre-trains the tiny HuBERT with the recipe of the package; the same call goes on after an interruption."""
    from speechft_ray.speech.pretraining.recipe import PretrainOptions
    from speechft_ray.speech.pretraining.run import pretrain

    kind = CORPORA.get("synthetic")
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn()) as bars:
        sound, learn = bars.add_task("speech", total=None), bars.add_task("updates", total=None)
        options = kind.options.model_validate({"part": "pretrain"})
        corpus = kind.open(options, None, work / "corpora", lambda done, total: bars.update(sound, completed=done, total=total))
        pretrain(PretrainOptions(), corpus, out, lambda done, total: bars.update(learn, completed=done, total=total), work)


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """Turns the first SIGINT or SIGTERM into a set event, so that the run ends cleanly; a second one ends the process.

    Slurm, Kubernetes and spot machines send SIGTERM before they take a machine away.
    """
    stop = threading.Event()
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def remember(number: int, frame: object) -> None:
        stop.set()
        signal.signal(number, before[signal.SIGINT] if number == signal.SIGINT else signal.SIG_DFL)

    for number in signals:
        signal.signal(number, remember)
    try:
        yield stop
    finally:
        for number in signals:
            signal.signal(number, before[number])


def open_executor(address: str | None, place: Place, say: Callable[[str], None] = print) -> Executor:
    """Opens the executor at an address; ``None`` is this process. ``say`` is told what cluster it is."""
    if address is None:
        return LocalExecutor(perform, place)
    from speechft_ray.cluster.connect import connect  # ray takes seconds to load: not before there is work
    from speechft_ray.cluster.executor import RayExecutor

    cluster = connect(address)
    say(
        f"Ray: {cluster.nodes} node{'s' if cluster.nodes != 1 else ''}, {cluster.cpus:g} CPUs, {cluster.gpus:g} GPUs"
        + (f"; dashboard at {cluster.dashboard}" if cluster.dashboard else "")
    )
    return RayExecutor(perform, place, cluster=cluster)


def open_trackers(spec: SweepSpec, store: Store, mlflow_uri: str | None) -> list[Tracker]:
    """Opens every view of a sweep."""
    from speechft_ray.tracking.background import InBackground
    from speechft_ray.tracking.jsonl import JsonlTracker
    from speechft_ray.tracking.mlflow import MlflowTracker

    return [InBackground(MlflowTracker(mlflow_uri, store.root)), JsonlTracker(store.root / "log" / spec.name)]


def _display(plan: Plan, missing: Mapping[str, Job], stopped: Mapping[str, str]) -> Display:
    """Counts the jobs of the plan; what an earlier run stopped early is none of them."""
    totals: dict[str, int] = {stage: sum(job.fingerprint not in stopped for job in plan.of_stage(stage)) for stage in STAGES}
    reused: dict[str, int] = {stage: totals[stage] - sum(job.stage == stage for job in missing.values()) for stage in STAGES}
    return Display(totals, reused)


def publish(
    plan: Plan,
    store: Store,
    publisher: Publisher,
    report: Path,
    failures: Sequence[Outcome],
    status: str,
    place: Place,
    search: SearchFindings | None = None,
) -> list[str]:
    """Keeps the choice, writes the report, tells the trackers, and returns the sentences that say how to open them."""
    found = rows(plan, store)
    record_choice(plan, store, found, status)
    findings = Findings(
        sweep=sweep_info(plan),
        rows=found,
        curves=curves(plan, store),
        failures=failures,
        references=references(plan, store),
        where=" ".join(publisher.where()),
        versions={name: version(name) for name in ("speechft_ray", "torch", "ray", "mlflow", "s3prl")},
        tests=counts_of(plan, store),
        leaks=leaks(plan, store, place, lambda item: corpus_identity(item, place)),
        chosen=plan.chosen,
        search=search,
    )
    write_report(report, findings)
    return publisher.finish(report, status)


def say_result(plan: Plan, store: Store, report: Path, views: Sequence[str]) -> None:
    """Prints the table of a sweep and where its views are."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=REPORT_COLUMNS)
    found = rows(plan, store)
    console.print(terminal_table(groups(found, references(plan, store), plan.chosen)))
    for sentence in dict.fromkeys(row.stopped for row in found if row.stopped):
        console.print(sentence, soft_wrap=True, highlight=False, markup=False)
    console.print(f"Report: {report / 'index.html'} (table.csv, table.md and the figures beside it)", soft_wrap=True)
    for sentence in views:
        console.print(sentence, soft_wrap=True, highlight=False)


def failed_lines_to_stderr(failures: Sequence[Outcome]) -> None:
    """Names every failed job."""
    for line in failure_lines(failures):
        Console(stderr=True).print(f"failed: {line}", soft_wrap=True, highlight=False, markup=False)


def _corpus_options(spec: CorpusSpec) -> BaseModel:
    return validated(CORPORA.get(spec.name).options, dict(spec.options), where=f"corpus `{spec.name}`")


def gathered(merge: MergeSpec, spec: SweepSpec) -> None:
    """Refuses a merge that needs statistics which the fine-tuning of its donors does not gather. An unknown method passes."""
    needs = METHODS.get(merge.method).needs if merge.method in METHODS.names() else None
    lacking = [
        run.name for run in spec.finetune if merge.donors == "each" or run.name in merge.donors if needs not in run.gather
    ]
    if needs and lacking:
        raise UserError(
            f"`{merge.method}` needs {needs} statistics of the donors' tuning sets: set `gather: [{needs}]` for the "
            f"fine-tuning of {', '.join(dict.fromkeys(lacking))}."
        )


def kept(merge: MergeSpec, spec: SweepSpec) -> None:
    """Refuses a merge of early checkpoints that a donor does not keep, or whose statistics are those of the best one."""
    if merge.checkpoint == "best":
        return
    lacking = [
        run.name
        for run in spec.finetune
        if merge.donors == "each" or run.name in merge.donors
        if merge.checkpoint not in run.keep_at
    ]
    if lacking:
        raise UserError(
            f"the fine-tuning of {', '.join(dict.fromkeys(lacking))} keeps no weights at {merge.checkpoint:g} of its updates: "
            f"add it to `keep_at`, or name other `donors`."
        )
    if merge.method in METHODS.names() and METHODS.get(merge.method).needs:
        raise UserError(f"`{merge.method}` needs statistics, which are gathered with the `best` checkpoint alone: merge that.")


def _task(entry: EvalSpec, spec: SweepSpec) -> None:
    """Checks a task's name and options, and refuses a metric whose score has no zero or no one."""
    task_options(TASKS.get(entry.task), entry.options)
    for metric in metrics_of(entry.task):
        if spec.score.zero == "measured" and metric.name not in spec.score.topline:
            raise UserError(f"`score.topline` lacks `{metric.name}`: state the value that counts as 1000.")
        if spec.score.zero == "paper" and metric.fbank is None:
            raise UserError(f"the paper has no reference for `{metric.name}`: use `score: {{zero: measured, topline: ...}}`.")
