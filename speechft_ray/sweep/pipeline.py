"""Runs a plan: no barrier between stages, failures stay where they happen, the store is asked before anything is computed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from speechft_ray.core.errors import Interrupted
from speechft_ray.core.records import STAGES, Job, Outcome
from speechft_ray.core.store import Store
from speechft_ray.sweep.plan import Plan
from speechft_ray.sweep.protocols import Executor, Progress

POLL_SECONDS = 0.5
"""Longest wait for an outcome before progress is shown again."""


class Watch(Protocol):
    """Whoever shows the run to a person."""

    def started(self, job: Job) -> None: ...
    def finished(self, outcome: Outcome) -> None: ...
    def tick(self, progress: Mapping[str, Progress]) -> None: ...


@dataclass
class Ledger:
    """What is known of every job of one run."""

    complete: set[str] = field(default_factory=set)
    failed: dict[str, Outcome] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)


def needed_jobs(plan: Plan, store: Store) -> dict[str, Job]:
    """Returns the jobs that must still be done: evaluations that are not in the store, and what they need and lack."""
    needed: dict[str, Job] = {}

    def visit(key: str) -> None:
        job = plan.jobs[key]
        if key in needed or store.complete(job.stage, key):
            return
        needed[key] = job
        for need in job.needs:
            visit(need)

    for job in plan.of_stage("evaluate"):
        visit(job.fingerprint)
    order = {key: index for index, key in enumerate(plan.jobs)}
    return dict(sorted(needed.items(), key=lambda item: (STAGES.index(item[1].stage), order[item[0]])))


def run_plan(
    plan: Plan,
    store: Store,
    executor: Executor,
    watch: Watch,
    on_finished: Callable[[Outcome], None],
    stop: threading.Event,
) -> list[Outcome]:
    """Performs what is missing and returns the failures (including jobs that were blocked by a failed one).

    ``on_finished`` is called on this thread for each outcome, after it is in the store. Raises ``Interrupted`` when ``stop``
    was set; whatever was complete by then stays in the store.
    """
    needed = needed_jobs(plan, store)
    ledger = Ledger()
    while len(ledger.complete) + len(ledger.failed) < len(needed):
        if stop.is_set():
            executor.stop()
            raise Interrupted
        for job in _ready(needed, ledger):
            ledger.running.add(job.fingerprint)
            executor.submit(job)
            watch.started(job)
        for outcome in executor.outcomes(POLL_SECONDS):
            settled = [outcome, *_settle(outcome, needed, ledger)]
            for item in settled:
                watch.finished(item)
                on_finished(item)
        watch.tick(executor.progress())
    return list(ledger.failed.values())


def _ready(needed: Mapping[str, Job], ledger: Ledger) -> Sequence[Job]:
    """Jobs that can start: nothing they need is still to be done. A need outside ``needed`` is complete in the store."""
    return [
        job
        for key, job in needed.items()
        if key not in ledger.complete
        and key not in ledger.failed
        and key not in ledger.running
        and all(need in ledger.complete or need not in needed for need in job.needs)
    ]


def _settle(outcome: Outcome, needed: Mapping[str, Job], ledger: Ledger) -> list[Outcome]:
    """Books an outcome; returns the outcomes of jobs that can never start because of it."""
    ledger.running.discard(outcome.fingerprint)
    if outcome.ok:
        ledger.complete.add(outcome.fingerprint)
        return []
    ledger.failed[outcome.fingerprint] = outcome
    blocked: list[Outcome] = []
    for key, job in needed.items():  # stage order, so one pass reaches everything downstream
        if key not in ledger.failed and any(need in ledger.failed for need in job.needs):
            first = next(ledger.failed[need] for need in job.needs if need in ledger.failed)
            culprit = first.blocked_by or first.label
            error = f"not started, because `{culprit}` failed"
            fate = Outcome(stage=job.stage, fingerprint=key, label=job.label, error=error, blocked_by=culprit)
            ledger.failed[key] = fate
            blocked.append(fate)
    return blocked
