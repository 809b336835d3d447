"""Wires real parts together: checks every name of a spec, makes the plan, runs it, writes the
report."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

from speechft_ray.commands.checks import check_names
from speechft_ray.commands.parts import (
    RESOURCES,
    corpus_identity,
    ensure_downloaded,
    open_executor,
    open_trackers,
)
from speechft_ray.core.records import STAGES, Job, Outcome, Place
from speechft_ray.core.specs import SweepSpec
from speechft_ray.core.store import Store
from speechft_ray.report.intervals import counts_of
from speechft_ray.report.progress import Display
from speechft_ray.report.search_summary import SearchFindings
from speechft_ray.report.summary import groups
from speechft_ray.report.table import failure_lines, terminal_table
from speechft_ray.report.winner import record_choice
from speechft_ray.report.write import Findings, write_report
from speechft_ray.stages.leaks import leaks
from speechft_ray.stages.perform import publish_start, start_encoder
from speechft_ray.sweep.lock import driver_lock
from speechft_ray.sweep.plan import Inputs, Plan, make_plan
from speechft_ray.sweep.publishing import Publisher, sweep_info
from speechft_ray.sweep.rows import curves, references, rows
from speechft_ray.sweep.scheduler import jobs_to_run, run_plan
from speechft_ray.sweep.stops import stopped_jobs

REPORT_COLUMNS = 110
"""Width of the table in a log file, where nothing tells a width."""


def plan_sweep(spec: SweepSpec, place: Place) -> Plan:
    """Checks a spec against everything it names and returns its plan. Reads the encoder and the
    user's own corpora.

    An encoder that is known by name alone is downloaded, even for a plan that nobody runs: identity
    is content.
    """
    check_names(spec)
    ensure_downloaded(place.encoder)
    _, encoder = start_encoder(place.encoder)
    return make_plan(
        spec,
        Inputs(
            encoder=encoder, corpus=lambda item: corpus_identity(item, place), resources=RESOURCES
        ),
    )


def run_sweep(
    spec: SweepSpec,
    place: Place,
    address: str | None,
    report: Path,
    mlflow_uri: str | None,
    stop: threading.Event,
) -> list[Outcome]:
    """Runs what is missing of a sweep on a cluster (``None``: in this process), writes its report,
    returns the failures.

    Raises ``UserError`` before anything is computed when the input is wrong, and ``Interrupted``
    when ``stop`` was set.
    """
    store = Store(Path(place.storage))
    plan = plan_sweep(spec, place)
    missing = jobs_to_run(plan, store)
    if any(job.stage in ("finetune", "merge") for job in missing.values()):
        publish_start(place)
    executor = open_executor(address, place) if missing else None
    failures: list[Outcome] = []
    status = "stopped"
    with (
        driver_lock(store.root, plan.fingerprint),
        _display(plan, missing, stopped_jobs(plan, store)) as display,
    ):
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
    status = "stopped" if jobs_to_run(plan, store) else "finished"
    say_result(plan, store, report, publish(plan, store, publisher, report, [], status, place))


def _display(plan: Plan, missing: Mapping[str, Job], stopped: Mapping[str, str]) -> Display:
    """Counts the jobs of the plan; what an earlier run stopped early is none of them."""
    totals: dict[str, int] = {
        stage: sum(job.fingerprint not in stopped for job in plan.of_stage(stage))
        for stage in STAGES
    }
    reused: dict[str, int] = {
        stage: totals[stage] - sum(job.stage == stage for job in missing.values())
        for stage in STAGES
    }
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
    """Keeps the choice, writes the report, tells the trackers, and returns the sentences that say
    how to open them."""
    found = rows(plan, store)
    record_choice(plan, store, found, status)
    findings = Findings(
        sweep=sweep_info(plan),
        rows=found,
        curves=curves(plan, store),
        failures=failures,
        references=references(plan, store),
        where=" ".join(publisher.where()),
        versions={
            name: version(name) for name in ("speechft_ray", "torch", "ray", "mlflow", "s3prl")
        },
        tests=counts_of(plan, store),
        leaks=leaks(plan, store, place, lambda item: corpus_identity(item, place)),
        chosen=plan.winner,
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
    console.print(terminal_table(groups(found, references(plan, store), plan.winner)))
    for sentence in dict.fromkeys(row.stopped for row in found if row.stopped):
        console.print(sentence, soft_wrap=True, highlight=False, markup=False)
    console.print(
        f"Report: {report / 'index.html'} (table.csv, table.md and the figures beside it)",
        soft_wrap=True,
    )
    for sentence in views:
        console.print(sentence, soft_wrap=True, highlight=False)


def failed_lines_to_stderr(failures: Sequence[Outcome]) -> None:
    """Names every failed job."""
    for line in failure_lines(failures):
        Console(stderr=True).print(f"failed: {line}", soft_wrap=True, highlight=False, markup=False)
