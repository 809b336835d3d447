"""Fine-tuning runs that were stopped early on purpose, as the store remembers them: they are no
failures and are not repeated.

A stop counts for a run and a rule. A sweep without ``stop_tuning``, or with another rule, goes on
with the run from its last saved state.
"""

from __future__ import annotations

from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.core.records import Job, Outcome
from speechft_ray.core.store import Store
from speechft_ray.sweep.plan import Plan

STAGE = "stopped"
"""Folder of the store."""


def mark_stopped(store: Store, job: Job, outcome: Outcome) -> None:
    """Keeps that a run was stopped, and why."""
    with store.publish(
        STAGE,
        stop_key(job),
        {"finetune": job.fingerprint, "label": job.label, "why": outcome.error},
    ):
        pass


def read_stopped_jobs(plan: Plan, store: Store) -> dict[str, str]:
    """Returns why a job is not done, for each that is a stopped run or needs one, by
    fingerprint."""
    found: dict[str, str] = {}
    if plan.spec.stop_tuning is None:
        return found
    for key, job in plan.jobs.items():  # needs come first
        reason = next((found[need] for need in job.needs if need in found), None)
        if reason is None and "stop" in job.payload and store.is_complete(STAGE, stop_key(job)):
            facts = store.manifest(STAGE, stop_key(job))
            reason = f"{facts['label']} was {facts['why']}"
        if reason is not None and not store.is_complete(job.stage, key):
            found[key] = reason
    return found


def stop_key(job: Job) -> str:
    return fingerprint({"run": job.fingerprint, "rule": job.payload["stop"]})
