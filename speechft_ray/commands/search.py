"""Wires a search together: checks it against the registries, runs it on an executor, publishes what
it chose."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from speechft_ray.commands.checks import check_names, gathered
from speechft_ray.commands.parts import (
    RESOURCES,
    corpus_identity,
    ensure_downloaded,
    open_executor,
    open_trackers,
)
from speechft_ray.commands.sweep import failed_lines_to_stderr, publish, say_result
from speechft_ray.core.errors import SpecError, UserError
from speechft_ray.core.records import Job, Outcome, Place
from speechft_ray.core.specs import SweepSpec
from speechft_ray.core.store import Store
from speechft_ray.merging.base import check
from speechft_ray.report.progress import Display
from speechft_ray.report.search_summary import SearchFindings, search_sentences, spared, trial_row
from speechft_ray.search.greedy_soup import GreedySoup
from speechft_ray.search.loop import open_judge, progress_line, replay_search, run_search
from speechft_ray.search.plan import SearchPlan, chosen_plan, make_search_plan
from speechft_ray.search.proposals import corners
from speechft_ray.search.trials import Judge, Trial
from speechft_ray.stages.perform import perform, publish_start, start_encoder
from speechft_ray.sweep.local import LocalExecutor
from speechft_ray.sweep.lock import driver_lock
from speechft_ray.sweep.plan import Inputs, Plan
from speechft_ray.sweep.protocols import Executor, Progress
from speechft_ray.sweep.publishing import Publisher
from speechft_ray.sweep.scheduler import JobScheduler, jobs_to_run

if TYPE_CHECKING:  # optuna takes half a second to load
    from speechft_ray.search.optuna_proposer import OptunaProposer
    from speechft_ray.search.optuna_view import StudyView

FIRST_COPIES = 4
"""Copies of the encoder that one fine-tuning run keeps while it runs: weights, the best weights,
and Adam's two moments."""


def plan_search(spec: SweepSpec, place: Place) -> SearchPlan:
    """Checks a search against everything it names and returns its plan. Reads the encoder and the
    user's own corpora."""
    check_names(spec)
    ensure_downloaded(place.encoder)
    weights, encoder = start_encoder(place.encoder)
    inputs = Inputs(
        encoder=encoder, corpus=lambda item: corpus_identity(item, place), resources=RESOURCES
    )
    plan = make_search_plan(spec, inputs, encoder_depth(weights.state))
    mistakes = _merge_mistakes(plan)
    if mistakes:
        raise SpecError(f"the search `{spec.name}`", mistakes)
    open_proposer(plan)  # a sampler whose package is missing is told before anything is computed
    return plan


def encoder_depth(names: Mapping[str, object]) -> int:
    """Returns the number of encoder layers, from parameter names such as
    ``encoder.layers.11.fc1.weight``."""
    return len(
        {found.group(1) for name in names if (found := re.match(r"encoder\.layers\.(\d+)\.", name))}
    )


def open_proposer(plan: SearchPlan) -> GreedySoup | OptunaProposer:
    """Returns a fresh proposer of the search's kind."""
    if plan.search.sampler == "greedy_soup":
        return GreedySoup(plan.search, plan.space)
    from speechft_ray.search.optuna_proposer import OptunaProposer

    return OptunaProposer(plan.search, plan.space.draw)


def run_search_sweep(
    spec: SweepSpec,
    place: Place,
    address: str | None,
    report: Path,
    mlflow_uri: str | None,
    stop: threading.Event,
) -> list[Outcome]:
    """Runs what is missing of a search, writes its report, returns the failures.

    Raises ``UserError`` before anything is computed when the input is wrong, and ``Interrupted``
    when ``stop`` was set.
    """
    store, plan = Store(Path(place.storage)), plan_search(spec, place)
    check_disk(plan, store, place)
    publish_start(place)
    proposer = open_proposer(plan)
    with driver_lock(store.root, plan.fingerprint), _display(plan, store) as display:
        publisher = Publisher(
            plan.controls, store, open_trackers(spec, store, mlflow_uri), display.note
        )
        publisher.start()
        executor = OnDemand(address, place, display)
        scheduler = JobScheduler(executor, display, publisher.outcome, stop, by_priority=True)
        listener = _Listener(plan, store, display, publisher, proposer)
        final: Plan = plan.controls
        status = "stopped"
        try:
            run_search(plan, store, scheduler, proposer, listener)
            final = _finish(plan, store, scheduler, publisher, listener)
            status = "failed" if scheduler.failed else "finished"
        finally:
            executor.stop()
            findings = listener.findings()
            failures = list(scheduler.failed.values())
            views = publish(final, store, publisher, report, failures, status, place, findings)
    say_result(final, store, report, views)
    for sentence in search_sentences(findings):
        Console().print(sentence, soft_wrap=True, highlight=False)
    failed_lines_to_stderr(failures)
    return failures


def publish_search_again(
    spec: SweepSpec, place: Place, report: Path, mlflow_uri: str | None
) -> None:
    """Writes the report of a search from the store, and sends trackers what they lack."""
    store, plan, console = Store(Path(place.storage)), plan_search(spec, place), Console()
    publisher = Publisher(
        plan.controls, store, open_trackers(spec, store, mlflow_uri), console.print
    )
    publisher.start()
    listener, final = replayed(plan, store, place, publisher)
    publisher.chosen(final)
    status = "finished" if final.winner and not jobs_to_run(final, store) else "stopped"
    findings = listener.findings()
    say_result(
        final, store, report, publish(final, store, publisher, report, [], status, place, findings)
    )
    for sentence in search_sentences(findings):
        console.print(sentence, soft_wrap=True, highlight=False)


def replayed(
    plan: SearchPlan, store: Store, place: Place, publisher: Publisher | None
) -> tuple[_Listener, Plan]:
    """Walks a search as far as the store knows it, and returns what was seen and the plan of what
    it chose; runs nothing."""
    proposer = open_proposer(plan)
    listener = _Listener(plan, store, Display({}, {}), publisher, proposer)
    scheduler = JobScheduler(
        LocalExecutor(perform, place), listener.display, lambda outcome: None, threading.Event()
    )
    ended = replay_search(plan, store, scheduler, proposer, listener)
    chosen = listener.chosen() if ended else []
    return listener, chosen_plan(
        plan, [(trial.number, trial.proposal) for trial in chosen]
    ) if chosen else plan.controls


def _finish(
    plan: SearchPlan,
    store: Store,
    scheduler: JobScheduler,
    publisher: Publisher,
    listener: _Listener,
) -> Plan:
    """Evaluates what was chosen, and the controls, on dev and test; the merged encoders stay in the
    store."""
    final = chosen_plan(plan, [(trial.number, trial.proposal) for trial in listener.chosen()])
    publisher.chosen(final)
    needed = jobs_to_run(final, store)
    for stage in ("corpus", "finetune", "merge", "evaluate"):
        listener.display.left(stage, sum(job.stage == stage for job in needed.values()))
    scheduler.add(needed)
    while scheduler.active:
        scheduler.poll()
    return final


def _display(plan: SearchPlan, store: Store) -> Display:
    """Counts corpora, fine-tuning runs that may be proposed and merges that stay; evaluations are
    counted on the way."""
    keys = {
        stage: [job.fingerprint for job in plan.jobs.values() if job.stage == stage]
        for stage in ("corpus", "finetune")
    }
    totals = {stage: len(found) for stage, found in keys.items()}
    reused = {
        stage: sum(store.is_complete(stage, key) for key in found) for stage, found in keys.items()
    }
    kept = {"merge": len(plan.controls.rows) + 2, "evaluate": plan.search.trials * len(plan.tasks)}
    return Display(totals | kept, reused)


def check_disk(plan: SearchPlan, store: Store, place: Place) -> None:
    """Raises ``UserError`` when the storage has too little room for checkpoints, fine-tuned models
    and the winner."""
    weights, _ = start_encoder(place.encoder)
    size = sum(tensor.numel() * tensor.element_size() for tensor in weights.state.values())
    runs = [key for _, key in plan.space.runs if not store.is_complete("finetune", key)]
    starts = [
        job.fingerprint
        for job in plan.jobs.values()
        if job.stage == "merge" and job.payload["donors"]
    ]  # of chains
    merged = sum(not store.is_complete("merge", key) for key in starts) + 1
    copies = (
        len(runs) + (FIRST_COPIES if runs else 0) + merged + 2 * len(plan.search.objectives)
    )  # winners, in MLflow too
    free = shutil.disk_usage(store.root).free
    if free < copies * size:
        raise UserError(
            f"the storage folder `{store.root}` has {free / 1e9:.2f} GB free, but this search needs about "
            f"{copies * size / 1e9:.2f} GB for {len(runs)} fine-tuned models, their checkpoints and the winner: free some room "
            "or give another folder with --storage."
        )


def _merge_mistakes(plan: SearchPlan) -> list[tuple[str, str]]:
    """What the merge methods say to the ends of every range and to every choice."""
    if plan.search.sampler == "greedy_soup":
        return []
    found: dict[tuple[str, str], None] = {}
    refused: dict[str, str] = {}
    per_layer = [
        name for name, axis in plan.space.axes.all().items() if axis.kind in ("per_layer", "curve")
    ]
    if per_layer and not plan.space.depth:
        return [
            (f"search.axes.{name}", "is per encoder layer, but this encoder has no layers.")
            for name in per_layer
        ]
    for proposal in corners(plan.space):
        merge = proposal.merge
        try:
            check(merge.method, merge.params, len(proposal.donors))
            gathered(
                merge.model_copy(
                    update={"donors": tuple(run.spec.name for run, _ in proposal.donors)}
                ),
                plan.spec,
            )
        except SpecError as error:
            found |= {
                (f"search.axes.{merge.method}.{path}", text): None for path, text in error.mistakes
            }
        except UserError as error:  # the low and the high end say the same: told once
            refused.setdefault(f"search.axes.{merge.method}", str(error))
    return [*found, *refused.items()]


class OnDemand:
    """An executor that is opened by its first job: a search that is all in the store starts no
    cluster."""

    def __init__(self, address: str | None, place: Place, display: Display) -> None:
        self._address, self._place, self._display = address, place, display
        self._executor: Executor | None = None

    def submit(self, job: Job) -> None:
        """Opens the executor if need be and hands it the job."""
        if self._executor is None:
            self._executor = open_executor(self._address, self._place, self._display.note)
        self._executor.submit(job)

    def outcomes(self, timeout_seconds: float) -> list[Outcome]:
        """What ended; nothing before the first job."""
        return self._executor.outcomes(timeout_seconds) if self._executor else []

    def slots(self, job: Job) -> int:
        """One before the first job, which opens the executor."""
        return self._executor.slots(job) if self._executor else 1

    def progress(self) -> Mapping[str, Progress]:
        """What runs; nothing before the first job."""
        return self._executor.progress() if self._executor else {}

    def stop(self) -> None:
        """Ends what was opened."""
        if self._executor:
            self._executor.stop()


class _Listener:
    """Shows a search, tells the trackers, and has the view for optuna-dashboard written in a thread
    of its own."""

    def __init__(
        self,
        plan: SearchPlan,
        store: Store,
        display: Display,
        publisher: Publisher | None,
        proposer: GreedySoup | OptunaProposer,
    ) -> None:
        self.plan, self.store, self.display, self.publisher, self.proposer = (
            plan,
            store,
            display,
            publisher,
            proposer,
        )
        self.trials: list[Trial] = []
        self.judge: Judge | None = None
        self._view = _open_view(plan, store, proposer) if publisher else None
        self._writer = ThreadPoolExecutor(max_workers=1) if self._view else None

    def started(self, trial: Trial) -> None:
        self.trials.append(trial)
        self._show()

    def judged(self, trial: Trial, judge: Judge) -> None:
        self.judge = judge
        if trial.error is not None:
            self.display.note(f"trial {trial.number} failed: {trial.error}")
        if self.publisher is not None:
            self.publisher.trial(trial_row(self.plan, trial, judge))
        self._show()

    def told(self, trial: Trial) -> None:
        if self._view is not None and self._writer is not None:
            self._writer.submit(self._view.copy, trial.number)

    def chosen(self) -> list[Trial]:
        """What is best by now."""
        return self.judge.chosen(self.trials) if self.judge else []

    def findings(self) -> SearchFindings:
        """What is known by now; ends the writing of the view."""
        self.judge = self.judge or open_judge(self.plan, self.store)
        if self._view is not None and self._writer is not None:
            self._writer.submit(self._view.check)
            self._writer.shutdown()
            if self._view.trouble:
                self.display.note(self._view.trouble)
            self._view = self._writer = None
        return SearchFindings(
            plan=self.plan,
            judge=self.judge,
            trials=self.trials,
            chosen=self.chosen(),
            spared=spared(self.plan, self.trials, self.store),
            importances=_importances(self.proposer),
        )

    def _show(self) -> None:
        left = sum(
            len(self.plan.tasks) - trial.tasks for trial in self.trials if trial.state == "running"
        )
        left += (self.plan.search.trials - len(self.trials)) * len(self.plan.tasks)
        controls = self.plan.controls.of_stage("evaluate")
        left += (
            sum(not self.store.is_complete("evaluate", job.fingerprint) for job in controls)
            if not self.judge
            else 0
        )
        self.display.left("evaluate", left + 2 * len(self.plan.spec.evaluate))
        self.display.remark(progress_line(self.trials, self.plan.search.trials, self.judge))


def _open_view(
    plan: SearchPlan, store: Store, proposer: GreedySoup | OptunaProposer
) -> StudyView | None:
    if isinstance(proposer, GreedySoup):
        return None
    from speechft_ray.search.optuna_view import StudyView

    return StudyView(
        store.root / "search" / plan.fingerprint, plan.spec.name, proposer, plan.search
    )


def _importances(proposer: GreedySoup | OptunaProposer) -> dict[str, float]:
    if isinstance(proposer, GreedySoup):
        return {}
    from speechft_ray.search.optuna_importance import importances

    return importances(proposer.study)
