"""A search over merges: checked against the registries, performed, selected and evaluated."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from rich.console import Console

from speechft_ray.commands.checks import check_names, check_statistics
from speechft_ray.commands.parts import plan_sweep_inputs
from speechft_ray.commands.provenance import SpaceSource
from speechft_ray.commands.search_jobs import list_search_jobs
from speechft_ray.commands.status import print_search_plan, print_search_status
from speechft_ray.core.errors import SpecError, SweepError, UserError
from speechft_ray.core.layers import layer_of
from speechft_ray.core.records import Place
from speechft_ray.core.specs import SweepSpec
from speechft_ray.core.store import Store
from speechft_ray.cost.jobs import PlannedJob
from speechft_ray.merging.base import validate_params
from speechft_ray.report.progress import ProgressDisplay
from speechft_ray.report.rungs import summarize_rungs
from speechft_ray.report.search_optimism import measure_optimism
from speechft_ray.report.search_summary import (
    SearchResults,
    count_saved_evaluations,
    make_trial_row,
)
from speechft_ray.search.greedy_soup import GreedySoup
from speechft_ray.search.loop import open_evaluator, replay_search, run_search
from speechft_ray.search.plan import SearchPlan, make_search_plan, make_selection_plan
from speechft_ray.search.progress import progress_line
from speechft_ray.search.proposals import extreme_points
from speechft_ray.search.trials import Trial, TrialEvaluator
from speechft_ray.stages.perform import perform
from speechft_ray.stages.sources import start_encoder
from speechft_ray.storage.address import is_url
from speechft_ray.storage.open import open_store
from speechft_ray.sweep.local import LocalExecutor
from speechft_ray.sweep.plan import Plan
from speechft_ray.sweep.plan_file import write_plan
from speechft_ray.sweep.publishing import Publisher
from speechft_ray.sweep.scheduler import JobScheduler, jobs_to_run, run_jobs

if TYPE_CHECKING:  # optuna takes half a second to load
    from speechft_ray.search.optuna_proposer import OptunaProposer
    from speechft_ray.search.optuna_view import StudyView

FIRST_COPIES = 4
"""Copies of the encoder that one fine-tuning run keeps while it runs: weights, the best weights
and Adam's two moments."""


class MergeSearch:
    """A sweep that proposes its merges one after the other, by what was evaluated before."""

    by_priority = True
    source = SpaceSource()

    def __init__(self, spec: SweepSpec, place: Place) -> None:
        self.spec, self.place = spec, place
        self.store = open_store(place.storage)
        self.search = plan_search(spec, place)
        self.plan: Plan = self.search.controls
        self.tunings = [job for job in self.search.jobs.values() if job.stage == "finetune"]
        self.fingerprint = self.search.fingerprint
        self._observer: SearchObserver | None = None
        self.store.pull_records()
        self.store.prefetch((job.stage, key) for key, job in self.search.jobs.items())
        # Proposals are in no plan; those of earlier runs are asked for one after the other.
        self.store.prefetch_stage("evaluate")

    def check_disk(self) -> None:
        """Raises ``UserError`` when checkpoints, models and the winner would not fit."""
        check_disk(self.search, self.store, self.place)

    def open_display(self) -> ProgressDisplay:
        """Counts corpora, fine-tuning runs that may be proposed and merges that are kept.

        Evaluations are counted while the search goes on.
        """
        plan, store = self.search, self.store
        keys = {
            stage: [job.fingerprint for job in plan.jobs.values() if job.stage == stage]
            for stage in ("corpus", "finetune")
        }
        totals = {stage: len(members) for stage, members in keys.items()}
        reused = {
            stage: sum(store.is_complete(stage, key) for key in members)
            for stage, members in keys.items()
        }
        totals["merge"] = len(plan.controls.rows) + 2
        totals["evaluate"] = plan.search.trials * len(plan.tasks)
        return ProgressDisplay(totals, reused)

    def execute(
        self, scheduler: JobScheduler, display: ProgressDisplay, publisher: Publisher
    ) -> None:
        """Runs the search, then evaluates what it selected, and the controls, on dev and test."""
        proposer = open_proposer(self.search)
        observer = SearchObserver(self.search, self.store, display, publisher, proposer)
        self._observer = observer
        run_search(self.search, self.store, scheduler, proposer, observer)
        self._select(observer, publisher)
        write_plan(self.plan, self.place, self.store, self.search.jobs)  # gc keeps what a plan has
        missing = jobs_to_run(self.plan, self.store)
        for stage in ("corpus", "finetune", "merge", "evaluate"):
            display.set_remaining(stage, sum(job.stage == stage for job in missing.values()))
        run_jobs(self.plan, self.store, scheduler)

    def replay(self, publisher: Publisher | None) -> None:
        """Follows the search as far as the store has its evaluations; runs nothing."""
        proposer = open_proposer(self.search)
        display = ProgressDisplay({}, {})
        observer = SearchObserver(self.search, self.store, display, publisher, proposer)
        self._observer = observer
        executor = LocalExecutor(perform, self.place)
        scheduler = JobScheduler(executor, display, lambda outcome: None, threading.Event())
        if replay_search(self.search, self.store, scheduler, proposer, observer):
            self._select(observer, publisher)

    def _select(self, observer: SearchObserver, publisher: Publisher | None) -> None:
        """Plans the evaluation of the selected merges; their weights stay in the store."""
        selected = observer.select()
        if selected:
            self.plan = make_selection_plan(
                self.search, [(trial.number, trial.proposal) for trial in selected]
            )
        if publisher is not None:
            publisher.set_plan(self.plan)

    def findings(self) -> SearchResults | None:
        """Returns the trials, their results and what was selected by now."""
        return self._observer.findings() if self._observer else None

    def list_planned_jobs(self) -> list[PlannedJob]:
        """Returns what the search needs at most: every fine-tuning run, every task of every
        proposal (with rungs, what is expected of them), one merge that is selected, and the
        controls."""
        done = len(self._observer.trials) if self._observer else 0
        return list_search_jobs(self.search, self.store, done)

    def print_plan(self, console: Console) -> None:
        """Prints what is known before the first proposal: donors, axes, tasks and budget."""
        print_search_plan(self.search, self.store, console)

    def print_status(self, console: Console) -> None:
        """Prints how far the search is, as far as the store knows, and which driver runs it."""
        self.replay(None)
        assert self._observer is not None
        progress = progress_line(
            self._observer.trials, self.search.search.trials, self._observer.evaluator
        )
        print_search_status(self.search, self.plan, self.store, progress, console)


def plan_search(spec: SweepSpec, place: Place) -> SearchPlan:
    """Checks a search against everything it names and returns its plan. Reads the encoder and the
    user's own corpora."""
    check_names(spec)
    inputs = plan_sweep_inputs(spec, place)
    weights = start_encoder(place.encoder).weights
    plan = make_search_plan(spec, inputs, encoder_depth(weights.state))
    mistakes = _merge_mistakes(plan)
    if mistakes:
        raise SweepError(f"the search `{spec.name}`", mistakes)
    open_proposer(plan)  # refuses a sampler whose package is missing
    return plan


def encoder_depth(names: Mapping[str, object]) -> int:
    """Returns the number of encoder layers, from parameter names such as
    ``encoder.layers.11.fc1.weight``."""
    return len({layer_of(name) for name in names} - {None})


def open_proposer(plan: SearchPlan) -> GreedySoup | OptunaProposer:
    """Returns a fresh proposer of the search's kind."""
    if plan.search.sampler == "greedy_soup":
        return GreedySoup(plan.search, plan.space)
    from speechft_ray.search.optuna_proposer import OptunaProposer

    return OptunaProposer(plan.search, plan.space.draw)


def check_disk(plan: SearchPlan, store: Store, place: Place) -> None:
    """Raises ``UserError`` when checkpoints, fine-tuned models and the winner would not fit. A
    bucket is never full."""
    if is_url(place.storage):
        return
    weights = start_encoder(place.encoder).weights
    size = sum(tensor.numel() * tensor.element_size() for tensor in weights.state.values())
    runs = [key for _, key in plan.space.runs if not store.is_complete("finetune", key)]
    # Merges that later stages of chains start from, and the control alpha 1.
    merges = [job for job in plan.jobs.values() if job.stage == "merge" and job.payload["donors"]]
    merged = sum(not store.is_complete("merge", job.fingerprint) for job in merges) + 1
    # Each winner is stored twice: in the store and in MLflow.
    winners = 2 * len(plan.search.objectives)
    copies = len(runs) + (FIRST_COPIES if runs else 0) + merged + winners
    free = shutil.disk_usage(store.root).free
    if free < copies * size:
        raise UserError(
            f"the storage folder `{store.address}` has {free / 1e9:.2f} GB free, but this search "
            f"needs about {copies * size / 1e9:.2f} GB for {len(runs)} fine-tuned models, their "
            "checkpoints and the winner: free some room or give another folder with --storage."
        )


def _merge_mistakes(plan: SearchPlan) -> list[tuple[str, str]]:
    """Returns what the merge methods refuse at the ends of every range and for every choice."""
    if plan.search.sampler == "greedy_soup":
        return []
    mistakes: dict[tuple[str, str], None] = {}
    refused: dict[str, str] = {}
    per_layer = [
        name for name, axis in plan.space.axes.all().items() if axis.kind in ("per_layer", "curve")
    ]
    if per_layer and not plan.space.depth:
        return [
            (f"search.axes.{name}", "is per encoder layer, but this encoder has no layers.")
            for name in per_layer
        ]
    for proposal in extreme_points(plan.space):
        merge = proposal.merge
        try:
            validate_params(merge.method, merge.params, len(proposal.donors))
            check_statistics(
                merge.model_copy(
                    update={"donors": tuple(run.spec.name for run, _ in proposal.donors)}
                ),
                plan.spec,
            )
        except SpecError as error:
            mistakes |= {
                (f"search.axes.{merge.method}.{path}", text): None for path, text in error.mistakes
            }
        except (
            UserError
        ) as error:  # reported once, where the low and the high end have the same error
            refused.setdefault(f"search.axes.{merge.method}", str(error))
    return [*mistakes, *refused.items()]


class SearchObserver:
    """Shows the progress of a search, logs its trials and writes the optuna-dashboard file.

    The file is written in a thread of its own.
    """

    def __init__(
        self,
        plan: SearchPlan,
        store: Store,
        display: ProgressDisplay,
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
        self.evaluator: TrialEvaluator | None = None
        self._view = _open_view(plan, store, proposer) if publisher else None
        self._writer = ThreadPoolExecutor(max_workers=1) if self._view else None

    def on_trial_start(self, trial: Trial) -> None:
        self.trials.append(trial)
        self._show()

    def on_trial_end(self, trial: Trial, evaluator: TrialEvaluator) -> None:
        self.evaluator = evaluator
        if trial.error is not None:
            self.display.note(f"trial {trial.number} failed: {trial.error}")
        if self.publisher is not None:
            self.publisher.log_trial(make_trial_row(self.plan, trial, evaluator))
        self._show()

    def on_result_reported(self, trial: Trial) -> None:
        if self._view is not None and self._writer is not None:
            self._writer.submit(self._view.copy, trial.number)

    def select(self) -> list[Trial]:
        """Returns the best trials by now: one, or the Pareto front of several objectives."""
        return self.evaluator.select_best(self.trials) if self.evaluator else []

    def findings(self) -> SearchResults:
        """Returns the results by now and closes the optuna-dashboard file."""
        self.evaluator = self.evaluator or open_evaluator(self.plan, self.store)
        if self._view is not None and self._writer is not None:
            self._writer.submit(self._view.check)
            self._writer.shutdown()
            if self._view.trouble:
                self.display.note(self._view.trouble)
            self._view = self._writer = None
        return SearchResults(
            plan=self.plan,
            evaluator=self.evaluator,
            trials=self.trials,
            chosen=self.select(),
            saved=count_saved_evaluations(self.plan, self.trials, self.store),
            optimism=measure_optimism(self.plan, self.trials, self.evaluator, self.store),
            rungs=summarize_rungs(self.plan, self.trials, self.store),
            importances=_importances(self.proposer),
        )

    def _show(self) -> None:
        left = self._count_evaluations_left()
        controls = self.plan.controls.of_stage("evaluate")
        left += (
            sum(not self.store.is_complete("evaluate", job.fingerprint) for job in controls)
            if not self.evaluator
            else 0
        )
        self.display.set_remaining("evaluate", left + 2 * len(self.plan.spec.evaluate))
        self.display.set_summary(
            progress_line(self.trials, self.plan.search.trials, self.evaluator)
        )

    def _count_evaluations_left(self) -> int:
        """Returns how many evaluations of trials are still to be done; with rungs, at least."""
        plan, running = self.plan, [trial for trial in self.trials if trial.state == "running"]
        waiting = plan.search.trials - len(self.trials)
        if not plan.search.list_rungs():
            left = sum(len(plan.tasks) - trial.tasks for trial in running)
            return left + waiting * len(plan.tasks)
        left = sum(len(trial.rung_metrics) <= trial.rung for trial in running)
        return (left + waiting) * len(plan.probe_tasks())


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
