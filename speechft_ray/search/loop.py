"""The loop of a search: never a generation barrier, and yet the same trials whatever ends when.

Proposal k is asked for when exactly the trials 0 to k - window were told; those between are known
to the sampler as running. Trials are told in the order of their numbers. So proposals do not depend
on how long evaluations take, on the number of workers, or on interruptions: a run that goes on asks
again from the first proposal and finds the evaluations in the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from speechft_ray.core.errors import UserError
from speechft_ray.core.objectives import DISTANCE
from speechft_ray.core.records import Outcome, read_scores
from speechft_ray.core.store import Store
from speechft_ray.search.plan import SearchPlan
from speechft_ray.search.proposals import Proposal, Proposer
from speechft_ray.search.trials import Judge, Standard, Trial, best_seen
from speechft_ray.sweep.rows import read_references, read_rows
from speechft_ray.sweep.scheduler import JobScheduler, missing_jobs


class Listener(Protocol):
    """Whoever wants to know how a search goes."""

    def started(self, trial: Trial) -> None: ...
    def judged(self, trial: Trial, judge: Judge) -> None: ...
    def told(self, trial: Trial) -> None: ...


def run_search(
    plan: SearchPlan, store: Store, scheduler: JobScheduler, proposer: Proposer, listener: Listener
) -> list[Trial]:
    """Runs a search to the end of its budget and returns its trials in order.

    Raises ``UserError`` when a control that all trials are compared with cannot be evaluated, and
    ``Interrupted`` when the scheduler was stopped.
    """
    search = _Search(plan, store, scheduler, proposer, listener)
    search.begin()
    while search.propose() or scheduler.active:
        search.settle(scheduler.poll())
    search.end()
    return search.trials


def replay_search(
    plan: SearchPlan, store: Store, scheduler: JobScheduler, proposer: Proposer, listener: Listener
) -> bool:
    """Walks a search as far as the store knows its evaluations; returns whether that is to its end.
    Runs nothing."""
    search = _Search(plan, store, scheduler, proposer, listener)
    search.begin()
    while search.propose():
        pass
    search.end()
    asked = search.exhausted or len(search.trials) == plan.search.trials
    return asked and all(trial.verdict is not None for trial in search.trials)


def open_judge(plan: SearchPlan, store: Store) -> Judge | None:
    """Returns the judge of a search, or ``None`` while the controls are not all in the store."""
    (row,) = read_rows(plan.controls, store)
    known = read_references(plan.controls, store, "dev")
    if not row.complete or (plan.controls.baseline and not known):
        return None
    pretrained = {
        name.removeprefix("dev."): value
        for name, value in row.metrics.items()
        if name.startswith("dev.")
    }
    return Judge(search=plan.search, tasks=plan.tasks, references=known, pretrained=pretrained)


class _Search:
    """The state of one search."""

    def __init__(
        self,
        plan: SearchPlan,
        store: Store,
        scheduler: JobScheduler,
        proposer: Proposer,
        listener: Listener,
    ) -> None:
        self.plan, self.store, self.scheduler = plan, store, scheduler
        self.proposer, self.listener = proposer, listener
        self.trials: list[Trial] = []
        self.judge: Judge | None = None
        self.exhausted = False
        self._told = 0
        self._unjudged: list[Trial] = []
        self._waiting: dict[str, list[Trial]] = {}
        self._first: dict[str, int] = {}

    def begin(self) -> None:
        """Wants the controls, which no proposal waits for."""
        self.scheduler.add(
            missing_jobs(
                [job.fingerprint for job in self.plan.controls.of_stage("evaluate")],
                self.plan.jobs,
                self.store,
            )
        )
        self._open_judge()

    def propose(self) -> bool:
        """Starts every trial that may start; returns whether it started one."""
        before = len(self.trials)
        while not self.exhausted and len(self.trials) < self.plan.search.trials:
            needed = self.proposer.needs(len(self.trials))
            if not self._tell(needed):
                break
            proposal = self.proposer.ask()
            if proposal is None:
                self.exhausted = True
            else:
                self._start(proposal)
        return len(self.trials) > before

    def settle(self, ended: Sequence[Outcome]) -> None:
        """Takes in what ended: trials go on to their next task, are judged, or fail."""
        for outcome in ended:
            for trial in self._waiting.pop(outcome.fingerprint, ()):
                self._advance(trial)
        self._open_judge()

    def end(self) -> None:
        """Tells the rest."""
        self._tell(len(self.trials))

    def _tell(self, count: int) -> bool:
        """Tells the first trials in order until ``count`` are told; returns whether they are, and
        ``False`` to wait."""
        while self._told < count and (verdict := self.trials[self._told].verdict) is not None:
            self.proposer.tell(self._told, verdict)
            self.listener.told(self.trials[self._told])
            self._told += 1
        return self._told == count

    def _start(self, proposal: Proposal) -> None:
        number, key = len(self.trials), self.plan.merged(proposal)
        standard = self.judge.standard(self.trials[: self._told]) if self.judge else Standard()
        repeats = self._first.get(key)
        trial = Trial(number=number, proposal=proposal, key=key, standard=standard, repeats=repeats)
        self._first.setdefault(key, number)
        self.trials.append(trial)
        self.listener.started(trial)
        self._advance(trial)
        if trial.state == "running":
            for key in self._later(trial):
                self.scheduler.add(
                    missing_jobs([key], self.plan.jobs, self.store),
                    priority=number + 1,
                    speculative=True,
                )

    def _later(self, trial: Trial) -> list[str]:
        """Evaluations that a trial would come to if it is not stopped before."""
        tasks = self.plan.tasks[trial.tasks + (trial.state == "running") :]
        keys = [self.plan.evaluation(trial.proposal, trial.number, task) for task in tasks]
        return [
            key
            for key in keys
            if key not in self.scheduler.failed and not self.store.is_complete("evaluate", key)
        ]

    def _advance(self, trial: Trial) -> None:
        """Reads the evaluations of a trial that are in, one task after the other, and asks for the
        next."""
        while trial.tasks < len(self.plan.tasks):
            key = self.plan.evaluation(trial.proposal, trial.number, self.plan.tasks[trial.tasks])
            if key in self.scheduler.failed:
                trial.state, trial.error = "failed", self.scheduler.failed[key].error
                break
            if not self.store.is_complete("evaluate", key):
                self._waiting.setdefault(key, []).append(trial)
                self.scheduler.add(
                    missing_jobs([key], self.plan.jobs, self.store), priority=trial.number + 1
                )
                return
            facts = self.store.manifest("evaluate", key)
            trial.metrics |= {
                score.metric: score.mean for score in read_scores(facts) if score.split == "dev"
            }
            if DISTANCE in facts:
                trial.metrics[DISTANCE] = float(facts[DISTANCE])
            trial.tasks += 1
            if trial.tasks < len(self.plan.tasks) and self.judge and self.judge.hopeless(trial):
                trial.state = "stopped"
                for later in self._later(trial):
                    self.scheduler.cancel(later)
                break
        else:
            trial.state = "complete"
        self._unjudged.append(trial)
        self._give_verdicts()

    def _give_verdicts(self) -> None:
        if self.judge is None:
            return
        trials, self._unjudged = self._unjudged, []
        for trial in trials:
            trial.verdict = self.judge.verdict(trial)
            if trial.verdict.state == "failed" and trial.error is None:
                trial.state, trial.error = "failed", "a value is not a finite number"
            self.listener.judged(trial, self.judge)

    def _open_judge(self) -> None:
        """Opens the judge once the controls are in the store. Raises ``UserError`` when they never
        will be."""
        if self.judge is None:
            failed = [self.scheduler.failed[job.fingerprint] for job in self.plan.controls.of_stage("evaluate")
                      if job.fingerprint in self.scheduler.failed]  # fmt: skip
            if failed:
                raise UserError(
                    f"`{failed[0].label}` failed, and without it no proposal can be judged: {failed[0].error} "
                    "Mend it and run the same command again."
                )
            self.judge = open_judge(self.plan, self.store)
            self._give_verdicts()


def progress_line(trials: Sequence[Trial], budget: int, judge: Judge | None) -> str:
    """Returns ``trials 12/40, 4 running, 3 stopped early; best score 512.30 (trial 7)``."""
    counts = {
        state: sum(trial.state == state for trial in trials)
        for state in ("running", "stopped", "failed")
    }
    ended = len(trials) - counts["running"]
    parts = [f"trials {ended}/{budget}", f"{counts['running']} running"]
    parts += [f"{counts['stopped']} stopped early"] if counts["stopped"] else []
    parts += [f"{counts['failed']} failed"] if counts["failed"] else []
    best = best_seen(trials, judge) if judge else None
    if judge is None or best is None or best.verdict is None:
        return ", ".join(parts)
    return f"{', '.join(parts)}; best {judge.search.objectives[0]} {best.verdict.values[0]:.4g} (trial {best.number})"
