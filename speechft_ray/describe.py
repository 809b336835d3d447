"""What ``plan`` and ``status`` print: every job with what is already done. Runs nothing."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from speechft_ray.compose import plan_sweep
from speechft_ray.core.records import STAGES, Place
from speechft_ray.core.specs import SweepSpec
from speechft_ray.core.store import Store
from speechft_ray.sweep.lock import holder
from speechft_ray.sweep.pipeline import needed_jobs


def describe_plan(spec: SweepSpec, place: Place, console: Console) -> None:
    """Prints every corpus, trial, merge and evaluation, with its fingerprint and whether it is done."""
    store, plan = Store(Path(place.storage)), plan_sweep(spec, place)
    needed = needed_jobs(plan, store)
    for stage in STAGES:
        jobs = plan.of_stage(stage)
        left = sum(job.fingerprint in needed for job in jobs)
        console.print(f"\n{stage}: {len(jobs)}, of which {len(jobs) - left} need no work", style="bold")
        table = Table.grid(padding=(0, 2, 0, 2))
        for job in jobs:
            done = "done" if store.complete(stage, job.fingerprint) else "to do" if job.fingerprint in needed else "not needed"
            table.add_row(done, job.fingerprint, job.label)
        console.print(table)
    console.print(f"\nsweep {spec.name} ({plan.fingerprint}): {len(needed)} of {len(plan.jobs)} jobs to do. Nothing was run.")


def describe_status(spec: SweepSpec, place: Place, console: Console) -> None:
    """Prints how many jobs of each stage are done, and which driver runs the sweep now."""
    store, plan = Store(Path(place.storage)), plan_sweep(spec, place)
    needed = needed_jobs(plan, store)
    for stage in STAGES:
        jobs = plan.of_stage(stage)
        left = sum(job.fingerprint in needed for job in jobs)
        console.print(f"{stage:9} {len(jobs) - left}/{len(jobs)}", highlight=False)
    driver = holder(store.root, plan.fingerprint)
    if driver:
        console.print(f"running: {driver}")
    else:
        console.print("finished" if not needed else "not running; the same `run` command goes on where it stopped")
