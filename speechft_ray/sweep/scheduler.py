"""Schedules the jobs of a plan: submits each as soon as what it needs is complete.

There is no barrier between stages. A failed job blocks only the jobs that need it. What the store
has is not computed again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from speechft_ray.core.errors import DiskFull, Interrupted, StorageDown
from speechft_ray.core.full_disk import says_disk_full
from speechft_ray.core.records import STAGES, Job, Outcome
from speechft_ray.core.store import Store
from speechft_ray.sweep.plan import Plan
from speechft_ray.sweep.protocols import Executor, Progress
from speechft_ray.sweep.stops import mark_stopped, read_stopped_jobs

POLL_SECONDS = 0.5
"""Longest wait for an outcome before progress is shown again."""

SLOTS_PER_QUEUED = 8
"""With ``by_priority``, one evaluation queues in the executor for so many slots, and at least one,
so that no worker waits for this process."""


class Observer(Protocol):
    """Shows the progress of a run."""

    def on_job_start(self, job: Job) -> None: ...
    def on_job_end(self, outcome: Outcome) -> None: ...
    def on_progress(self, progress: Mapping[str, Progress]) -> None: ...


def jobs_to_run(plan: Plan, store: Store) -> dict[str, Job]:
    """Returns the jobs of a plan that must still be done.

    These are evaluations that are not in the store, what they need, and the merged encoder that a
    search selected. Jobs that need a run that was stopped early are left out.
    """
    goals = [job.fingerprint for job in plan.of_stage("evaluate")]
    if plan.winner:
        goals.append(plan.winner)
    stopped = read_stopped_jobs(plan, store)
    return missing_jobs([goal for goal in goals if goal not in stopped], plan.jobs, store)


def is_finished(plan: Plan, store: Store) -> bool:
    """Whether the store has everything; a search must also have selected a merge."""
    selected = plan.spec.search is None or plan.winner is not None
    return selected and not jobs_to_run(plan, store)


def missing_jobs(goals: Iterable[str], jobs: Mapping[str, Job], store: Store) -> dict[str, Job]:
    """Returns the goals that are not in the store and the incomplete jobs that they need.

    Jobs come by stage and in the order of ``jobs``, each after those that it needs.
    """
    # Everything incomplete that the goals lead to. A complete job hides what it needed.
    missing: dict[str, Job] = {}

    def visit(key: str) -> None:
        job = jobs[key]
        if key in missing or store.is_complete(job.stage, key):
            return
        missing[key] = job
        for need in job.needs:
            visit(need)

    for goal in goals:
        visit(goal)

    # By stage, then in the order of the plan.
    place = {key: index for index, key in enumerate(jobs)} if len(missing) > 1 else {}
    by_stage = sorted(
        missing.values(), key=lambda job: (STAGES.index(job.stage), place.get(job.fingerprint, 0))
    )

    # A later stage of a chain is fine-tuned after an earlier merge, against the order of stages.
    ordered: dict[str, Job] = {}

    def append(job: Job) -> None:
        for need in job.needs:
            if need in missing and need not in ordered:
                append(missing[need])
        ordered[job.fingerprint] = job

    for job in by_stage:
        if job.fingerprint not in ordered:
            append(job)
    return ordered


def run_jobs(plan: Plan, store: Store, scheduler: JobScheduler) -> None:
    """Performs what the store lacks of a plan, until nothing waits or runs.

    Runs that the executor stopped early are marked in the store. Raises ``Interrupted`` when the
    run was stopped; what was complete by then stays in the store.
    """
    missing = jobs_to_run(plan, store)
    for outcome in perform_jobs(missing, scheduler):
        if outcome.stopped and outcome.blocked_by is None:
            mark_stopped(store, plan.jobs[outcome.fingerprint], outcome)


def perform_jobs(jobs: Mapping[str, Job], scheduler: JobScheduler) -> Iterator[Outcome]:
    """Yields the outcomes of jobs, as they come, until nothing waits or runs.

    Raises ``Interrupted`` when the run was stopped.
    """
    scheduler.add(jobs)
    while scheduler.active:
        yield from scheduler.poll()


class JobScheduler:
    """Submits jobs to an executor once everything that they need is complete.

    Jobs may be added at any time; a job is performed once, however often it is added. With
    ``by_priority``, evaluations are held back until the executor has a free slot, and those with
    the lowest priority number start first. Speculative jobs start only where a worker would
    otherwise be idle.
    """

    def __init__(
        self,
        executor: Executor,
        observer: Observer,
        on_outcome: Callable[[Outcome], None],
        stop: threading.Event,
        by_priority: bool = False,
    ) -> None:
        self.failed: dict[str, Outcome] = {}
        """Outcomes of jobs that failed, were stopped, or are blocked by such a job."""
        self._executor, self._observer = executor, observer
        self._on_outcome, self._stop = on_outcome, stop
        self._waiting: dict[str, Job] = {}
        self._running: dict[str, Job] = {}
        self._by_priority = by_priority
        self._priorities: dict[str, tuple[bool, int]] = {}
        """``(speculative, priority)`` by job; the lowest starts first."""
        self._order: dict[str, int] = {}
        self._candidates: dict[str, None] = {}
        """Waiting jobs that may be able to start. The others wait behind one that they need, so
        that an outcome costs the jobs that it concerns, and not a look at all."""
        self._behind: dict[str, list[str]] = {}

    @property
    def active(self) -> bool:
        """Whether a job waits or runs."""
        return bool(self._waiting or self._running)

    def add(self, jobs: Mapping[str, Job], priority: int = 0, speculative: bool = False) -> None:
        """Adds jobs, each after those that it needs.

        A need that was never added is complete in the store. Of several priorities of one job the
        lowest counts, and it is speculative only if it was so each time.
        """
        for key, job in jobs.items():
            if key not in self._running and key not in self.failed:
                self._waiting[key] = job
                self._candidates[key] = None
                self._order.setdefault(key, len(self._order))
        self._priorities |= {
            key: min((speculative, priority), self._priorities.get(key, (True, priority)))
            for key in jobs
        }

    def cancel(self, key: str) -> None:
        """Removes a speculative job that was not submitted yet."""
        speculative, _ = self._priorities.get(key, (False, 0))
        if speculative and key in self._waiting:
            del self._waiting[key]
            self._release(key)

    def poll(self) -> list[Outcome]:
        """Submits jobs that can start and waits a while for outcomes.

        Returns what ended, and the jobs that can never start because of it. Raises ``Interrupted``
        when the run was stopped, and ``DiskFull`` or ``StorageDown`` when a job could not be
        stored: the others could not be stored either.
        """
        if self._stop.is_set():
            self._executor.stop()
            raise Interrupted
        # Jobs may have been added after what they need had failed.
        outcomes = self._pop_blocked()
        # Evaluations are sorted last, so the first that has no slot ends the loop.
        for job in self._ready_jobs():
            if self._by_priority and job.stage == "evaluate" and not self._has_slot(job):
                break
            del self._waiting[job.fingerprint]
            self._running[job.fingerprint] = job
            self._executor.submit(job)
            self._observer.on_job_start(job)
        # Each failure blocks everything downstream.
        if self._running:
            for outcome in self._executor.outcomes(POLL_SECONDS):
                outcomes += self._record(outcome)
        for outcome in outcomes:
            self._observer.on_job_end(outcome)
            self._on_outcome(outcome)
        self._observer.on_progress(self._executor.progress())
        return outcomes

    def _ready_jobs(self) -> list[Job]:
        """Returns the jobs that can start: evaluations last, and those by priority."""
        ready = []
        for key in list(self._candidates):
            job = self._waiting.get(key)
            need = self._find_unfinished_need(job) if job else None
            if job and need is None:
                ready.append(job)
                continue
            del self._candidates[key]
            if need is not None:
                self._behind.setdefault(need, []).append(key)

        def place(job: Job) -> tuple[bool, tuple[bool, int], int]:
            key = job.fingerprint
            return job.stage == "evaluate", self._priorities[key], self._order[key]

        return sorted(ready, key=place)

    def _find_unfinished_need(self, job: Job) -> str | None:
        unfinished = (need for need in job.needs if need in self._waiting or need in self._running)
        return next(unfinished, None)

    def _release(self, key: str) -> None:
        """Looks again at the jobs that waited behind one that waits and runs no more."""
        self._candidates |= dict.fromkeys(self._behind.pop(key, ()))

    def _has_slot(self, job: Job) -> bool:
        """Whether an evaluation would start soon. A few may queue, but no speculative ones."""
        slots = self._executor.slots(job)
        speculative, _ = self._priorities[job.fingerprint]
        queue = 0 if speculative else max(1, slots // SLOTS_PER_QUEUED)
        return sum(other.stage == "evaluate" for other in self._running.values()) < slots + queue

    def _record(self, outcome: Outcome) -> list[Outcome]:
        """Returns an outcome, and those of the jobs that it blocks."""
        self._running.pop(outcome.fingerprint, None)
        self._release(outcome.fingerprint)
        if outcome.error is None:
            return [outcome]
        if outcome.cannot_store or says_disk_full(outcome.error):
            self._executor.stop()
            error = StorageDown if outcome.cannot_store == "storage down" else DiskFull
            raise error(f"{outcome.label}: {outcome.error}")
        self.failed[outcome.fingerprint] = outcome
        return [outcome, *self._pop_blocked()]

    def _pop_blocked(self) -> list[Outcome]:
        """Removes waiting jobs that need a failed one; returns their outcomes."""
        blocked: list[Outcome] = []
        if not self.failed:
            return blocked
        # Needs come first, so that one pass reaches everything downstream.
        for key, job in list(self._waiting.items()):
            causes = [self.failed[need] for need in job.needs if need in self.failed]
            if not causes:
                continue
            cause = min(causes, key=lambda outcome: outcome.stopped)  # failures before stops
            label = cause.blocked_by or cause.label
            reason = "was stopped early" if cause.stopped else "failed"
            outcome = Outcome(
                stage=job.stage,
                fingerprint=key,
                label=job.label,
                error=f"not started, because `{label}` {reason}",
                blocked_by=label,
                stopped=cause.stopped,
            )
            self.failed[key] = outcome
            del self._waiting[key]
            blocked.append(outcome)
        return blocked
