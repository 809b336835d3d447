"""The verbs ``run`` and ``report``: one way for lists of merges and for searches over merges."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Protocol

from rich.console import Console

from speechft_ray.commands.bill import expect_seconds
from speechft_ray.commands.checks import check_names
from speechft_ray.commands.executors import OnDemandExecutor
from speechft_ray.commands.json_output import describe_report, print_json
from speechft_ray.commands.labels import check_labels
from speechft_ray.commands.parts import (
    RESOURCES,
    plan_sweep_inputs,
    set_resources,
)
from speechft_ray.commands.provenance import SpaceSource, begin_invocation
from speechft_ray.commands.results import (
    describe_sweep,
    print_failures,
    print_results,
    publish_results,
)
from speechft_ray.commands.search import MergeSearch
from speechft_ray.commands.status import print_list_plan, print_list_status
from speechft_ray.commands.status_writer import StatusWriter
from speechft_ray.commands.trackers import DEFAULT_TRACKERS, open_trackers
from speechft_ray.commands.verification import list_verification_jobs
from speechft_ray.core.closed_output import survive_closed_output
from speechft_ray.core.errors import UserError
from speechft_ray.core.records import STAGES, Job, Limits, Outcome, Place
from speechft_ray.core.specs import SweepSpec
from speechft_ray.core.store import Store
from speechft_ray.cost.jobs import PlannedJob
from speechft_ray.report.progress import ProgressDisplay
from speechft_ray.report.search_summary import SearchResults
from speechft_ray.report.winner import label_plan
from speechft_ray.report.write import PAGE, check_report_folder
from speechft_ray.stages.perform import publish_start
from speechft_ray.storage.open import mark_storage, open_existing, open_store
from speechft_ray.sweep.claims import UnitClaims
from speechft_ray.sweep.invocations import read_invocations, write_invocation
from speechft_ray.sweep.labels import choose_report_folder
from speechft_ray.sweep.lock import hold_lock
from speechft_ray.sweep.mending import set_damaged_aside
from speechft_ray.sweep.plan import Plan, make_plan
from speechft_ray.sweep.plan_file import read_plan, write_plan
from speechft_ray.sweep.protocols import Progress
from speechft_ray.sweep.publishing import Publisher
from speechft_ray.sweep.scheduler import JobScheduler, is_finished, jobs_to_run, run_jobs
from speechft_ray.sweep.status_file import read_failures
from speechft_ray.sweep.stops import read_stopped_jobs
from speechft_ray.sweep.verification import add_verified


class Sweep(Protocol):
    """What ``run`` needs of a sweep; ``MergeList`` and ``MergeSearch`` have it."""

    place: Place
    store: Store
    plan: Plan
    """All jobs that are planned by now; a search adds the merges that it selects."""
    fingerprint: str
    source: SpaceSource
    """Where it was read from."""
    by_priority: bool
    """Whether evaluations are held back until the executor has a free slot."""

    @property
    def spec(self) -> SweepSpec: ...

    @property
    def tunings(self) -> Sequence[Job]:
        """Fine-tuning runs that a search may propose, which are in no plan before it selects."""
        ...

    def check_disk(self) -> None:
        """Raises ``UserError`` when the storage folder lacks space for what will be written."""
        ...

    def open_display(self) -> ProgressDisplay:
        """Returns a progress display with the numbers of jobs."""
        ...

    def execute(
        self, scheduler: JobScheduler, display: ProgressDisplay, publisher: Publisher
    ) -> None:
        """Performs every missing job. Raises ``Interrupted`` when the scheduler was stopped."""
        ...

    def replay(self, publisher: Publisher | None) -> None:
        """Reads what earlier runs left in the store and runs nothing."""
        ...

    def findings(self) -> SearchResults | None:
        """Returns what a search found by now; ``None`` for a list of merges."""
        ...

    def list_planned_jobs(self) -> list[PlannedJob]:
        """Returns the jobs that are still to be done, in the order in which they run; of a search,
        as many as its budget allows."""
        ...

    def print_plan(self, console: Console) -> None: ...

    def print_status(self, console: Console) -> None: ...


class MergeList:
    """A sweep over a list of merges that the spec names in full."""

    tunings: Sequence[Job] = ()
    by_priority = False
    source = SpaceSource()

    def __init__(self, spec: SweepSpec, place: Place) -> None:
        self.spec, self.place = spec, place
        self.store = open_store(place.storage)
        check_names(spec)
        self._inputs = plan_sweep_inputs(spec, place)
        plan = make_plan(spec, self._inputs)
        self.store.pull_records()
        self.store.prefetch((job.stage, key) for key, job in plan.jobs.items())
        self.plan = add_verified(plan, self.store, self._inputs)
        self.fingerprint = self.plan.fingerprint

    def check_disk(self) -> None:
        """A list of merges has no check of its own."""

    def open_display(self) -> ProgressDisplay:
        """Counts the jobs of the plan. Runs that an earlier driver stopped early are left out."""
        stopped = read_stopped_jobs(self.plan, self.store)
        missing = jobs_to_run(self.plan, self.store)
        totals: dict[str, int] = {
            stage: sum(job.fingerprint not in stopped for job in self.plan.of_stage(stage))
            for stage in STAGES
        }
        reused = {stage: total - _count(missing, stage) for stage, total in totals.items()}
        return ProgressDisplay(totals, reused, expected=expect_seconds(self))

    def execute(
        self, scheduler: JobScheduler, display: ProgressDisplay, publisher: Publisher
    ) -> None:
        """Performs what the store lacks, then verifies the best predictions of its curves."""
        run_jobs(self.plan, self.store, scheduler)
        verified = add_verified(self.plan, self.store, self._inputs)
        if len(verified.rows) > len(self.plan.rows):
            self.plan = verified
            write_plan(verified, self.place, self.store)  # gc keeps what a plan has
            publisher.set_plan(verified)
            missing = jobs_to_run(verified, self.store)
            for stage in STAGES:
                display.set_remaining(stage, _count(missing, stage))
            run_jobs(verified, self.store, scheduler)

    def replay(self, publisher: Publisher | None) -> None:
        """The plan of a list is complete from the start."""

    def findings(self) -> SearchResults | None:
        """A list of merges searches nothing."""
        return None

    def list_planned_jobs(self) -> list[PlannedJob]:
        """Returns what the store lacks, and what verifies predictions."""
        missing = [PlannedJob.of(job) for job in jobs_to_run(self.plan, self.store).values()]
        return [*missing, *list_verification_jobs(self.plan)]

    def print_plan(self, console: Console) -> None:
        """Prints every job with its fingerprint and whether it is done."""
        print_list_plan(self.plan, self.store, console)

    def print_status(self, console: Console) -> None:
        """Prints how many jobs of each stage are done and which driver runs the sweep."""
        print_list_status(self.plan, self.store, console)


class RunObserver:
    """Shows a run, and logs the learning curves of running jobs."""

    def __init__(
        self, display: ProgressDisplay, publisher: Publisher, status: StatusWriter
    ) -> None:
        self.on_job_start = display.on_job_start
        self._display, self._publisher, self._status = display, publisher, status

    def on_job_end(self, outcome: Outcome) -> None:
        """Takes the outcome of a job."""
        self._display.on_job_end(outcome)
        self._status.add_outcome(outcome)

    def on_progress(self, progress: Mapping[str, Progress]) -> None:
        """Takes the progress of all running jobs; call it often."""
        self._display.on_progress(progress)
        self._publisher.log_progress(progress)
        self._status.write_if_due()


def open_sweep(spec: SweepSpec, place: Place, *, is_to_run: bool = True) -> Sweep:
    """Checks a spec against everything it names and plans it.

    Reads the encoder and the user's own corpora. An encoder that is known by name alone is
    downloaded, even for a plan that is not run: identity is content. The labels of corpora on disk
    are checked where ``is_to_run``; what only reads the store has no use for them, and needs a
    store that is there. Raises ``UserError``.
    """
    if not is_to_run:
        open_existing(place.storage)
    sweep: Sweep = MergeSearch(spec, place) if spec.search else MergeList(spec, place)
    if is_to_run:
        check_labels(spec, place)
    return sweep


def run(
    sweep: Sweep,
    address: str | None,
    report: Path,
    mlflow_uri: str | None,
    stop: threading.Event,
    limits: Limits = Limits(),  # noqa: B008  # frozen
    trackers: tuple[str, ...] = DEFAULT_TRACKERS,
) -> list[Outcome]:
    """Performs what is missing of a sweep, writes its report and returns the failed jobs.

    ``address`` is that of a Ray cluster, ``None`` for this process; ``trackers`` are names
    (``parse_trackers``). Where ``report`` has the report of another sweep, this one gets a folder
    beside it. Raises ``UserError`` before anything is computed when the input is wrong,
    ``Interrupted`` when ``stop`` was set, and ``DiskFull``.
    """
    with survive_closed_output(_note_closed_output):
        return _run(sweep, address, report, mlflow_uri, stop, limits, trackers)


def _run(
    sweep: Sweep,
    address: str | None,
    report: Path,
    mlflow_uri: str | None,
    stop: threading.Event,
    limits: Limits,
    trackers: tuple[str, ...],
) -> list[Outcome]:
    place, store = sweep.place, sweep.store
    store.check_writable()
    check_report_folder(report)
    sweep.check_disk()
    place = place.model_copy(update={"storage_id": mark_storage(store)})
    opened = open_trackers(sweep.spec, store, mlflow_uri, trackers)
    publish_start(place)
    failures: list[Outcome] = []
    status = "stopped"
    with ExitStack() as stack:
        stack.enter_context(_hold_lock(sweep, stop))
        stack.enter_context(store.keep_records())
        planned = sweep.plan
        tunings = {job.fingerprint: job for job in sweep.tunings}
        write_plan(planned, place, store, {**_read_earlier_jobs(sweep), **tunings})
        # Before the display counts what is done.
        set_damaged_aside(sweep.plan, store, _print_note)
        report = keep_both(sweep, report, _print_note)
        record = begin_invocation(sweep.spec, sweep.fingerprint, place, sweep.source)
        write_invocation(store, record)
        display = stack.enter_context(sweep.open_display())
        info = describe_sweep(sweep.plan, store, record)
        publisher = Publisher(sweep.plan, store, opened, display.note, sweep.tunings, info)
        status_file = StatusWriter(
            sweep.spec.name,
            sweep.fingerprint,
            store.root,
            display,
            lambda written: executor.show_status(written),
        )
        publisher.on_row = status_file.add_row
        publisher.start()
        resources = set_resources(RESOURCES, sweep.spec.resources)
        observer = RunObserver(display, publisher, status_file)
        claims = UnitClaims(store, sweep.fingerprint, display.note)
        executor = OnDemandExecutor(
            address, place, display.note, resources, limits, observer.on_progress, claims, stop
        )
        scheduler = JobScheduler(
            executor, observer, publisher.log_outcome, stop, by_priority=sweep.by_priority
        )
        try:
            sweep.execute(scheduler, display, publisher)
            status = "finished"
        finally:
            status_file.write()
            executor.stop()
            failures = [outcome for outcome in scheduler.failed.values() if not outcome.stopped]
            status = "failed" if failures and status == "finished" else status
            write_invocation(store, record.end(status, executor.describe_cluster()))
            findings = sweep.findings()
            if findings or sweep.plan is not planned:
                _write_final_plan(sweep, findings)
            data, how_to_open = publish_results(
                sweep.plan, store, publisher, report, failures, status, place, findings
            )
    print_results(data, report, how_to_open, store)
    print_failures(failures)
    return failures


def _note_closed_output() -> None:
    _print_note(
        "the standard output was closed: the sweep goes on in silence, and `speechft status` "
        "shows it."
    )


def keep_both(sweep: Sweep, report: Path, note: Callable[[str], object]) -> Path:
    """Returns the folder for the report of a sweep, and says so where its name or that folder
    belongs to another sweep."""
    label = label_plan(sweep.plan, sweep.store)
    folder = choose_report_folder(report, sweep.fingerprint, PAGE)
    if label != sweep.spec.name or folder != report:
        note(
            f"another sweep, with another search space, is called `{sweep.spec.name}` here. Both "
            f"are kept: this one is `{label}` for export and in MLflow, and its report is "
            f"{folder}. To name it yourself, change `name` in the search space."
        )
    return folder


def _hold_lock(sweep: Sweep, stop: threading.Event) -> AbstractContextManager[None]:
    return hold_lock(sweep.store, sweep.fingerprint, stop, _print_note)


def _print_note(text: str) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(text)


def write_report_again(
    sweep: Sweep,
    report: Path,
    mlflow_uri: str | None,
    trackers: tuple[str, ...] = DEFAULT_TRACKERS,
    *,
    as_json: bool = False,
) -> None:
    """Writes the report from the store and sends the trackers what they lack. Runs no job.

    With ``as_json`` the results are printed as one JSON object, and notes to standard error.
    """
    store = sweep.store
    is_writable = store.is_writable()
    if not is_writable:
        _print_note("the storage can only be read: the report is written, nothing is tracked.")
        trackers = ()
    opened = open_trackers(sweep.spec, store, mlflow_uri, trackers)
    note = Console(stderr=as_json).print
    report = keep_both(sweep, report, _print_note)
    with store.keep_records() if is_writable else nullcontext():
        records = read_invocations(store, sweep.fingerprint)
        info = describe_sweep(sweep.plan, store, records[-1] if records else None)
        publisher = Publisher(sweep.plan, store, opened, note, sweep.tunings, info)
        publisher.start()
        sweep.replay(publisher)
        failures = read_failures(store, sweep.fingerprint)
        for outcome in failures:
            publisher.log_outcome(outcome)
        status = "failed" if failures else "stopped"
        status = "finished" if is_finished(sweep.plan, store) else status
        findings = sweep.findings()
        _write_final_plan(sweep, findings)
        data, how_to_open = publish_results(
            sweep.plan, store, publisher, report, failures, status, sweep.place, findings
        )
    if as_json:
        print_json(describe_report(data, report, how_to_open))
    else:
        print_results(data, report, how_to_open, store)
        print_failures(failures)


def _read_earlier_jobs(sweep: Sweep) -> Mapping[str, Job]:
    """Returns the jobs of the plan that earlier runs of a search left, with the merges that they
    selected, which ``gc`` is to keep; none where they left none that can be read."""
    with suppress(UserError):
        if sweep.spec.search is not None:
            return read_plan(sweep.store, sweep.fingerprint).plan.jobs
    return {}


def _write_final_plan(sweep: Sweep, findings: SearchResults | None) -> None:
    """Writes the plan with what the run added to it, where the storage can be written."""
    if sweep.store.is_writable():
        jobs = findings.plan.jobs if findings else None
        write_plan(sweep.plan, sweep.place, sweep.store, jobs)


def _count(jobs: Mapping[str, Job], stage: str) -> int:
    return sum(job.stage == stage for job in jobs.values())
