"""The loop of a search: asynchronous, and yet with the same trials in every run.

Proposal k is asked for when exactly the results of trials 0 to k - max_concurrent were reported to
the sampler; the sampler counts the trials in between as running. Results are reported in the order
of trial numbers. Proposals therefore depend neither on the duration of evaluations nor on the
number of workers nor on interruptions: a resumed run asks again from the first proposal and
reads the evaluations from the store.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from speechft_ray.core.errors import UserError
from speechft_ray.core.metrics import name_metric
from speechft_ray.core.objectives import DISTANCE
from speechft_ray.core.records import Outcome, read_scores
from speechft_ray.core.rung_spec import SCREEN_FACT
from speechft_ray.core.specs import EvalSpec
from speechft_ray.core.store import Store
from speechft_ray.search.plan import SearchPlan
from speechft_ray.search.proposals import Proposal, Proposer
from speechft_ray.search.rungs import Rungs
from speechft_ray.search.trials import PruningBaseline, Trial, TrialEvaluator
from speechft_ray.sweep.rows import read_rows, read_scale
from speechft_ray.sweep.scheduler import JobScheduler, missing_jobs

AHEAD_WINDOWS = 8
"""Proposals that depend on no result are evaluated ahead within so many times ``max_concurrent``
numbers."""


class Observer(Protocol):
    """Is notified of the events of a search."""

    def on_trial_start(self, trial: Trial) -> None: ...
    def on_trial_end(self, trial: Trial, evaluator: TrialEvaluator) -> None: ...
    def on_result_reported(self, trial: Trial) -> None: ...


def run_search(
    plan: SearchPlan, store: Store, scheduler: JobScheduler, proposer: Proposer, observer: Observer
) -> list[Trial]:
    """Runs a search to the end of its budget and returns its trials in order.

    Raises ``UserError`` when a control that all trials are compared with cannot be evaluated, and
    ``Interrupted`` when the scheduler was stopped.
    """
    search = _Search(plan, store, scheduler, proposer, observer)
    search.begin()
    while search.propose() or scheduler.active:
        search.settle(scheduler.poll())
    search.end()
    return search.trials


def replay_search(
    plan: SearchPlan, store: Store, scheduler: JobScheduler, proposer: Proposer, observer: Observer
) -> bool:
    """Follows a search as far as the store has its evaluations. Runs nothing.

    Returns whether the search is complete.
    """
    search = _Search(plan, store, scheduler, proposer, observer, is_replay=True)
    search.begin()
    while search.propose():
        pass
    search.end()
    asked = search.exhausted or len(search.trials) == plan.search.trials
    return asked and all(trial.result is not None for trial in search.trials)


def open_evaluator(plan: SearchPlan, store: Store) -> TrialEvaluator | None:
    """Returns the evaluator of a search; ``None`` while a control is missing in the store."""
    (row,) = read_rows(plan.controls, store)
    scale = read_scale(plan.controls, store)
    if not row.complete or scale is None:
        return None
    return TrialEvaluator(
        search=plan.search,
        tasks=plan.tasks,
        references=scale.dev,
        pretrained=row.dev,
        unscored=row.unscored,
    )


def read_dev_values(facts: Mapping[str, Any], task: EvalSpec) -> dict[str, float]:
    """Returns the metrics on dev in the facts of an evaluation, by name; in those of a screen, what
    it measured: ``ridge.sid``."""
    metrics = {
        name_metric(score.metric, task.name): score.mean
        for score in read_scores(facts)
        if score.split == "dev"
    }
    screens = facts.get(SCREEN_FACT, {})
    return metrics | {f"{name}.{task.label}": float(value) for name, value in screens.items()}


class _Search:
    """The state of one search."""

    def __init__(
        self,
        plan: SearchPlan,
        store: Store,
        scheduler: JobScheduler,
        proposer: Proposer,
        observer: Observer,
        is_replay: bool = False,
    ) -> None:
        self.plan, self.store, self.scheduler = plan, store, scheduler
        self.is_replay = is_replay
        self.proposer, self.observer = proposer, observer
        self.trials: list[Trial] = []
        self.evaluator: TrialEvaluator | None = None
        self.exhausted = False
        self._reported = 0
        self._unevaluated: list[Trial] = []
        self._waiting: dict[str, list[Trial]] = {}
        self._first: dict[str, int] = {}

        self._rungs = Rungs(plan.search)
        self._last_rung = max(0, len(plan.search.list_rungs()) - 1)
        self._unvalued: list[Trial] = []
        self._ahead = 0

    def begin(self) -> None:
        """Adds the evaluations of the controls; no proposal waits for them."""
        self.scheduler.add(
            missing_jobs(
                [job.fingerprint for job in self.plan.controls.of_stage("evaluate")],
                self.plan.jobs,
                self.store,
            )
        )
        self._open_evaluator()

    def propose(self) -> bool:
        """Starts every trial that may start; returns whether it started one."""
        before = len(self.trials)
        while not self.exhausted and len(self.trials) < self.plan.search.trials:
            needed = self.proposer.needs(len(self.trials))
            if not self._report_results(needed):
                break
            proposal = self.proposer.ask()
            if proposal is None:
                self.exhausted = True
            else:
                self._start(proposal)
        self._evaluate_ahead()
        return len(self.trials) > before

    def _evaluate_ahead(self) -> None:
        """Lets idle workers evaluate the next proposals that depend on no result. Each is proposed
        in its turn, and has its evaluations then."""
        limit = len(self.trials) + AHEAD_WINDOWS * self.plan.search.concurrency()
        first = max(self._ahead, len(self.trials))
        for number in range(first, min(limit, self.plan.search.trials)):
            proposal = self.proposer.draw_ahead(number)
            if proposal is not None:
                for key in self.plan.rung_evaluations(proposal, number, 0):
                    if not self.store.is_complete("evaluate", key):
                        self._add_evaluations([key], number, speculative=True)
        self._ahead = max(first, min(limit, self.plan.search.trials))

    def settle(self, ended: Sequence[Outcome]) -> None:
        """Processes ended jobs: each trial continues with its next task, ends, or fails."""
        for outcome in ended:
            for trial in self._waiting.pop(outcome.fingerprint, ()):
                self._advance(trial)
        self._open_evaluator()
        self._decide_rungs()

    def end(self) -> None:
        """Reports the remaining results."""
        self._report_results(len(self.trials))

    def _report_results(self, count: int) -> bool:
        """Reports results in order until ``count`` are reported.

        Returns ``False`` where a result among them is still missing.
        """
        while self._reported < count and (result := self.trials[self._reported].result) is not None:
            self.proposer.tell(self._reported, result)
            self.observer.on_result_reported(self.trials[self._reported])
            self._reported += 1
        return self._reported == count

    def _start(self, proposal: Proposal) -> None:
        number, key = len(self.trials), self.plan.merge_key(proposal)
        reported = self.trials[: self._reported]
        baseline = (
            self.evaluator.pruning_baseline(reported) if self.evaluator else PruningBaseline()
        )
        repeats = self._first.get(key)
        trial = Trial(number=number, proposal=proposal, key=key, baseline=baseline, repeats=repeats)
        self._first.setdefault(key, number)
        self.trials.append(trial)
        self.observer.on_trial_start(trial)
        self._advance(trial)
        self._decide_rungs()
        if trial.state == "running" and not self._last_rung:
            self._add_evaluations(self._later(trial), number, speculative=True)

    def _later(self, trial: Trial) -> list[str]:
        """Returns the evaluations that follow unless the trial is pruned before."""
        tasks = self.plan.tasks[trial.tasks + (trial.state == "running") :]
        keys = [self.plan.evaluation(trial.proposal, trial.number, task) for task in tasks]
        return [
            key
            for key in keys
            if key not in self.scheduler.failed and not self.store.is_complete("evaluate", key)
        ]

    def _advance(self, trial: Trial) -> None:
        """Reads the finished evaluations of a trial and adds the next ones."""
        if trial.rung < self._last_rung:
            self._advance_to_rung(trial)
        else:
            self._advance_to_end(trial)

    def _advance_to_rung(self, trial: Trial) -> None:
        """Evaluates all tasks of a trial up to its rung; once they are in, its decision waits."""
        if len(trial.rung_metrics) > trial.rung:
            return
        keys = self.plan.rung_evaluations(trial.proposal, trial.number, trial.rung)
        metrics: dict[str, float] = {}
        missing: list[str] = []
        for key, task in zip(keys, self.plan.rung_tasks(trial.rung), strict=True):
            if key in self.scheduler.failed:
                trial.state, trial.error = "failed", self.scheduler.failed[key].error
                self._unevaluated.append(trial)
                self._evaluate_trials()
                return
            if self.store.is_complete("evaluate", key):
                metrics |= read_dev_values(self.store.manifest("evaluate", key), task)
            else:
                missing.append(key)
        if missing:
            self._waiting.setdefault(missing[0], []).append(trial)
            self._add_evaluations(missing, trial.number)
        else:
            trial.rung_metrics.append(metrics)
            self._unvalued.append(trial)

    def _add_evaluations(self, keys: Sequence[str], number: int, speculative: bool = False) -> None:
        for key in keys:
            jobs = missing_jobs([key], self.plan.jobs, self.store)
            self.scheduler.add(jobs, priority=number + 1, speculative=speculative)

    def _decide_rungs(self) -> None:
        """Decides which trials go on, as far as the values are known by which they are compared."""
        while self.evaluator is not None and self._last_rung:
            unvalued, self._unvalued = self._unvalued, []
            for trial in unvalued:
                self._value_rung(trial, self.evaluator)
            decisions = self._rungs.decide(self.trials)
            if not decisions:
                break
            for trial, goes_on in decisions:
                if goes_on:
                    trial.rung += 1
                    if trial.rung == self._last_rung:  # all tasks at once
                        keys = self.plan.rung_evaluations(trial.proposal, trial.number, trial.rung)
                        self._add_evaluations(keys, trial.number)
                    self._advance(trial)
                else:
                    trial.state = "pruned"
                    self._unevaluated.append(trial)
                    self._clear_states(trial)
            self._evaluate_trials()

    def _value_rung(self, trial: Trial, evaluator: TrialEvaluator) -> None:
        value = evaluator.rung_value(trial.rung_metrics[-1], len(trial.rung_values))
        if math.isfinite(value):
            trial.rung_values.append(value)
        else:
            trial.state, trial.error = "failed", "a value is not a finite number"
            self._unevaluated.append(trial)
            self._evaluate_trials()

    def _clear_states(self, trial: Trial) -> None:
        """Removes the saved probes of a trial that does not go on. A replay changes no storage."""
        if not self.is_replay:
            for task in self.plan.probe_tasks():
                key = self.plan.evaluation(trial.proposal, trial.number, task)
                self.store.clear_work("evaluate", key)

    def _advance_to_end(self, trial: Trial) -> None:
        """Reads the finished evaluations of a trial in the order of tasks and adds the next one."""
        while trial.tasks < len(self.plan.tasks):
            task = self.plan.tasks[trial.tasks]
            key = self.plan.evaluation(trial.proposal, trial.number, task)
            if key in self.scheduler.failed:
                trial.state, trial.error = "failed", self.scheduler.failed[key].error
                break
            if not self.store.is_complete("evaluate", key):
                self._waiting.setdefault(key, []).append(trial)
                self._add_evaluations([key], trial.number)
                return
            facts = self.store.manifest("evaluate", key)
            trial.metrics |= read_dev_values(facts, task)
            if DISTANCE in facts:
                trial.metrics[DISTANCE] = float(facts[DISTANCE])
            trial.tasks += 1
            if (
                trial.tasks < len(self.plan.tasks)
                and self.evaluator
                and self.evaluator.should_prune(trial)
            ):
                trial.state = "pruned"
                for later in self._later(trial):
                    self.scheduler.cancel(later)
                break
        else:
            trial.state = "complete"
        self._unevaluated.append(trial)
        self._evaluate_trials()

    def _evaluate_trials(self) -> None:
        if self.evaluator is None:
            return
        trials, self._unevaluated = self._unevaluated, []
        for trial in trials:
            trial.result = self.evaluator.compute_result(trial)
            if trial.result.state == "failed" and trial.error is None:
                trial.state, trial.error = "failed", "a value is not a finite number"
            self.observer.on_trial_end(trial, self.evaluator)

    def _open_evaluator(self) -> None:
        """Opens the evaluator once the controls are in the store.

        Raises ``UserError`` when a control failed, or the search needs a score and there is none.
        """
        if self.evaluator is None:
            controls = self.plan.controls.of_stage("evaluate")
            errors = self.scheduler.failed
            failed = [errors[job.fingerprint] for job in controls if job.fingerprint in errors]
            if failed:
                raise UserError(
                    f"`{failed[0].label}` failed, and without it no proposal can be evaluated: "
                    f"{failed[0].error} Correct it and run the same command again."
                )
            evaluator = open_evaluator(self.plan, self.store)
            if evaluator is not None:
                evaluator.check_score()
            self.evaluator = evaluator
            self._evaluate_trials()
