"""Records which fine-tuning runs were stopped early. They are no failures and are not repeated.

A record belongs to one run and one rule. A sweep without ``stop_tuning``, or with another rule,
resumes the run from its last checkpoint.
"""

from __future__ import annotations

from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.core.records import Job, Outcome
from speechft_ray.core.store import Store
from speechft_ray.sweep.plan import Plan

STAGE = "stopped"
"""Folder of the store."""


def mark_stopped(store: Store, job: Job, outcome: Outcome) -> None:
    """Records in the store that a run was stopped early, and why."""
    with store.publish(
        STAGE,
        stop_key(job),
        {"finetune": job.fingerprint, "label": job.label, "why": outcome.error},
    ):
        pass


def read_stopped_jobs(plan: Plan, store: Store) -> dict[str, str]:
    """Returns, by fingerprint, the reason why a job will not run: it was stopped early, or it needs
    a run that was."""
    reasons: dict[str, str] = {}
    if plan.spec.stop_tuning is None:
        return reasons
    for key, job in plan.jobs.items():  # needs come first
        reason = next((reasons[need] for need in job.needs if need in reasons), None)
        if reason is None and "stop" in job.payload and store.is_complete(STAGE, stop_key(job)):
            facts = store.manifest(STAGE, stop_key(job))
            reason = f"{facts['label']} was {facts['why']}"
        if reason is not None and not store.is_complete(job.stage, key):
            reasons[key] = reason
    return reasons


def stop_key(job: Job) -> str:
    return fingerprint({"run": job.fingerprint, "rule": job.payload["stop"]})
