"""Runs a plan: no barrier between stages, failures stay where they happen, the store is asked
before anything is computed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from speechft_ray.core.errors import Interrupted
from speechft_ray.core.records import STAGES, Job, Outcome
from speechft_ray.core.store import Store
from speechft_ray.sweep.plan import Plan
from speechft_ray.sweep.protocols import Executor, Progress
from speechft_ray.sweep.stops import mark_stopped, read_stopped_jobs

POLL_SECONDS = 0.5
"""Longest wait for an outcome before progress is shown again."""


QUEUED_PART = 8
"""Of the executor's slots, at least one: evaluations that queue in it while others wait for their
turn here."""


class Observer(Protocol):
    """Whoever shows the run to a person."""

    def on_job_start(self, job: Job) -> None: ...
    def on_job_end(self, outcome: Outcome) -> None: ...
    def on_progress(self, progress: Mapping[str, Progress]) -> None: ...


def jobs_to_run(plan: Plan, store: Store) -> dict[str, Job]:
    """Returns the jobs that must still be done: evaluations that are not in the store, what they
    need and lack, and the merged encoder that a search chose. What needs a run that was stopped
    early is not among them."""
    goals = [job.fingerprint for job in plan.of_stage("evaluate")] + (
        [plan.winner] if plan.winner else []
    )
    stopped = read_stopped_jobs(plan, store)
    return missing_jobs([goal for goal in goals if goal not in stopped], plan.jobs, store)


def missing_jobs(goals: Iterable[str], jobs: Mapping[str, Job], store: Store) -> dict[str, Job]:
    """Returns the goals that are not in the store and what they need and lack, needs before those
    that need them."""
    needed: dict[str, Job] = {}

    def visit(key: str) -> None:
        job = jobs[key]
        if key in needed or store.is_complete(job.stage, key):
            return
        needed[key] = job
        for need in job.needs:
            visit(need)

    for goal in goals:
        visit(goal)
    order = {key: index for index, key in enumerate(jobs)} if len(needed) > 1 else {}
    by_stage = sorted(
        needed.values(), key=lambda job: (STAGES.index(job.stage), order.get(job.fingerprint, 0))
    )
    found: dict[str, Job] = {}

    def add(job: Job) -> None:
        for need in job.needs:  # a later stage of a chain is tuned after an earlier merge
            if need in needed and need not in found:
                add(needed[need])
        found[job.fingerprint] = job

    for job in by_stage:
        if job.fingerprint not in found:
            add(job)
    return found


def run_plan(
    plan: Plan,
    store: Store,
    executor: Executor,
    observer: Observer,
    on_finished: Callable[[Outcome], None],
    stop: threading.Event,
) -> list[Outcome]:
    """Performs what is missing and returns the failures (including jobs that were blocked by a
    failed one).

    Runs that the executor stopped early are no failures; they are remembered in the store.

    ``on_finished`` is called on this thread for each outcome, after it is in the store. Raises
    ``Interrupted`` when ``stop`` was set; whatever was complete by then stays in the store.
    """
    scheduler = JobScheduler(executor, observer, on_finished, stop)
    run_jobs(plan, store, scheduler)
    return [outcome for outcome in scheduler.failed.values() if not outcome.stopped]


def run_jobs(plan: Plan, store: Store, scheduler: JobScheduler) -> None:
    """Performs what the store lacks of a plan, until nothing waits or runs.

    Runs that the executor stopped early are marked in the store.
    """
    scheduler.add(jobs_to_run(plan, store))
    while scheduler.active:
        for outcome in scheduler.poll():
            if outcome.stopped and outcome.blocked_by is None:
                mark_stopped(store, plan.jobs[outcome.fingerprint], outcome)


class JobScheduler:
    """Jobs on their way through an executor: each is submitted as soon as nothing that it needs is
    still to be done.

    More jobs may be wanted at any time; a job is done once, however often it is wanted. With
    ``by_priority`` evaluations are held back until the executor has room, and then those of the lowest
    turn go first; what is wanted ``ahead`` of its time is done only where a worker would be idle
    otherwise.
    """

    def __init__(
        self,
        executor: Executor,
        observer: Observer,
        on_finished: Callable[[Outcome], None],
        stop: threading.Event,
        by_priority: bool = False,
    ) -> None:
        self.failed: dict[str, Outcome] = {}
        self._executor, self._observer, self._on_finished, self._stop = (
            executor,
            observer,
            on_finished,
            stop,
        )
        self._waiting: dict[str, Job] = {}
        self._running: dict[str, Job] = {}
        self._by_priority = by_priority
        self._priorities: dict[str, tuple[bool, int]] = {}

    @property
    def active(self) -> bool:
        """Whether a job waits or runs."""
        return bool(self._waiting or self._running)

    def add(self, jobs: Mapping[str, Job], priority: int = 0, speculative: bool = False) -> None:
        """Adds jobs, needs before those that need them. A need that is neither here nor wanted is
        complete in the store."""
        self._waiting |= {
            key: job
            for key, job in jobs.items()
            if key not in self._running and key not in self.failed
        }
        self._priorities |= {
            key: min((speculative, priority), self._priorities.get(key, (True, priority)))
            for key in jobs
        }

    def cancel(self, key: str) -> None:
        """Forgets a job that was wanted ahead and has not started."""
        if self._priorities.get(key, (False, 0))[0]:
            self._waiting.pop(key, None)

    def poll(self) -> list[Outcome]:
        """Submits what can start, waits for what ends, and returns it with all that can never start
        because of it."""
        if self._stop.is_set():
            self._executor.stop()
            raise Interrupted
        ended = self._blocked()  # of jobs that were wanted after what they need had failed
        for job in self._ready():
            if self._by_priority and job.stage == "evaluate" and not self._has_room(job):
                break
            del self._waiting[job.fingerprint]
            self._running[job.fingerprint] = job
            self._executor.submit(job)
            self._observer.on_job_start(job)
        if self._running:
            for outcome in self._executor.outcomes(POLL_SECONDS):
                ended += self._settle(outcome)
        for item in ended:
            self._observer.on_job_end(item)
            self._on_finished(item)
        self._observer.on_progress(self._executor.progress())
        return ended

    def _ready(self) -> list[Job]:
        """Jobs that can start; evaluations last, those of the lowest turn first."""
        found = [
            job
            for job in self._waiting.values()
            if not any(need in self._waiting or need in self._running for need in job.needs)
        ]
        return sorted(
            found, key=lambda job: (job.stage == "evaluate", self._priorities[job.fingerprint])
        )

    def _has_room(self, job: Job) -> bool:
        """Whether an evaluation would start soon: a few may queue, so that no worker waits for this
        process."""
        slots = self._executor.slots(job)
        queued = 0 if self._priorities[job.fingerprint][0] else max(1, slots // QUEUED_PART)
        return sum(other.stage == "evaluate" for other in self._running.values()) < slots + queued

    def _settle(self, outcome: Outcome) -> list[Outcome]:
        """Books an outcome; returns it and the outcomes of jobs that can never start because of
        it."""
        self._running.pop(outcome.fingerprint, None)
        if outcome.ok:
            return [outcome]
        self.failed[outcome.fingerprint] = outcome
        return [outcome, *self._blocked()]

    def _blocked(self) -> list[Outcome]:
        blocked: list[Outcome] = []
        for key, job in list(
            self._waiting.items()
        ):  # needs come first, so one pass reaches everything downstream
            lost = [self.failed[need] for need in job.needs if need in self.failed]
            if lost:
                first = min(
                    lost, key=lambda outcome: outcome.stopped
                )  # what failed is told before what was stopped
                culprit = first.blocked_by or first.label
                error = f"not started, because `{culprit}` {'was stopped early' if first.stopped else 'failed'}"
                known = {
                    "stage": job.stage,
                    "fingerprint": key,
                    "label": job.label,
                    "stopped": first.stopped,
                }
                fate = Outcome.model_validate({**known, "error": error, "blocked_by": culprit})
                self.failed[key] = fate
                del self._waiting[key]
                blocked.append(fate)
        return blocked
