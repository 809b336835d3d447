"""What the verification of predicted merges adds to the plan of a sweep that has not run yet."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from speechft_ray.cost.jobs import PlannedJob, plan_merge
from speechft_ray.sweep.plan import Plan
from speechft_ray.sweep.verification import count_unverified, list_curves


def list_verification_jobs(plan: Plan) -> list[PlannedJob]:
    """Returns the merges and evaluations that will verify the predictions of a plan, under names,
    since only the predictions tell which merges these are."""
    jobs: list[PlannedJob] = []
    predictions = [job for job in plan.jobs.values() if "predicted" in job.payload]
    for number in range(count_unverified(plan)):
        name = f"verified {number}"
        predicted: Any = predictions[0].payload["predicted"]
        jobs += plan_merge(name, predicted["recipe"], plan.spec.evaluate)
    return jobs


def print_verification(plan: Plan, console: Console) -> None:
    """Prints what follows once the predictions of a plan are in the store."""
    curves, count = list_curves(plan), count_unverified(plan)
    if not curves:
        return
    alphas = sum(len(curve.rows) for curve in curves)
    console.print(
        f"{alphas} alphas of {len(curves)} curve{'s' if len(curves) > 1 else ''} are predicted on "
        f"dev; then the best are verified: {count} more merges, each with "
        f"{len(plan.spec.evaluate)} evaluations.",
        highlight=False,
    )
