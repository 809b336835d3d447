"""What ``plan`` and ``status`` print: every job with what is already done. Runs nothing."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from speechft_ray.commands.search import plan_search, replayed
from speechft_ray.commands.sweep import plan_sweep
from speechft_ray.core.records import STAGES, Place
from speechft_ray.core.specs import SweepSpec
from speechft_ray.core.store import Store
from speechft_ray.search.loop import progress_line
from speechft_ray.sweep.lock import lock_holder
from speechft_ray.sweep.scheduler import jobs_to_run
from speechft_ray.sweep.stops import stopped_jobs


def describe_plan(spec: SweepSpec, place: Place, console: Console) -> None:
    """Prints every corpus, trial, merge and evaluation, with its fingerprint and whether it is
    done."""
    if spec.search is not None:
        _describe_search_plan(spec, place, console)
        return
    store, plan = Store(Path(place.storage)), plan_sweep(spec, place)
    needed, stopped = jobs_to_run(plan, store), stopped_jobs(plan, store)
    for stage in STAGES:
        jobs = plan.of_stage(stage)
        left = sum(job.fingerprint in needed for job in jobs)
        console.print(
            f"\n{stage}: {len(jobs)}, of which {len(jobs) - left} need no work", style="bold"
        )
        table = Table.grid(padding=(0, 2, 0, 2))
        for job in jobs:
            rest = "stopped early" if job.fingerprint in stopped else "not needed"
            done = (
                "done"
                if store.is_complete(stage, job.fingerprint)
                else "to do"
                if job.fingerprint in needed
                else rest
            )
            table.add_row(done, job.fingerprint, job.label)
        console.print(table)
    console.print(
        f"\nsweep {spec.name} ({plan.fingerprint}): {len(needed)} of {len(plan.jobs)} jobs to do. Nothing was run."
    )


def describe_status(spec: SweepSpec, place: Place, console: Console) -> None:
    """Prints how many jobs of each stage are done, and which driver runs the sweep now."""
    if spec.search is not None:
        _describe_search_status(spec, place, console)
        return
    store, plan = Store(Path(place.storage)), plan_sweep(spec, place)
    needed, stopped = jobs_to_run(plan, store), stopped_jobs(plan, store)
    for stage in STAGES:
        jobs = [job for job in plan.of_stage(stage) if job.fingerprint not in stopped]
        left = sum(job.fingerprint in needed for job in jobs)
        early = len(plan.of_stage(stage)) - len(jobs)
        console.print(
            f"{stage:9} {len(jobs) - left}/{len(jobs)}"
            + (f" ({early} stopped early)" if early else ""),
            highlight=False,
        )
    driver = lock_holder(store.root, plan.fingerprint)
    if driver:
        console.print(f"running: {driver}")
    else:
        console.print(
            "finished"
            if not needed
            else "not running; the same `run` command goes on where it stopped"
        )


def _describe_search_plan(spec: SweepSpec, place: Place, console: Console) -> None:
    """Prints what a search knows before its first proposal: donors, axes, tasks, budget."""
    store, plan = Store(Path(place.storage)), plan_search(spec, place)
    search = plan.search
    table = Table.grid(padding=(0, 2, 0, 2))
    for _, key in plan.space.runs:
        done = "done" if store.is_complete("finetune", key) else "if proposed"
        table.add_row(done, key, plan.jobs[key].label)
    console.print(f"\nfine-tuning runs that may be merged: {len(plan.space.runs)}", style="bold")
    console.print(table)
    console.print("\naxes", style="bold")
    donors = plan.space.axes.donors
    console.print(
        f"  donors: {donors.kind} of {', '.join('+'.join(names) for names in donors.sets)}",
        highlight=False,
    )
    for name in plan.space.axes.run_fields:
        console.print(f"  {name}: of one of the fine-tuning runs of a name", highlight=False)
    for name, axis in plan.space.axes.all().items():
        between = f"{axis.kind} from {axis.low:g} to {axis.high:g}"
        what = ", ".join(map(str, axis.options)) if axis.options else between
        console.print(f"  {name}: {what}", highlight=False, markup=False)
    tasks = ", ".join(item.task for item in plan.tasks)
    console.print(
        f"\nsearch {spec.name} ({plan.fingerprint}): {search.trials} proposals by {search.sampler}, at most {search.lag()} at "
        f"once, each evaluated on dev on {tasks} (at most {search.trials * len(plan.tasks)} evaluations; early stops: "
        f"{search.stopping()}); then what it chose and both controls on dev and test. Nothing was run.",
        highlight=False,
    )


def _describe_search_status(spec: SweepSpec, place: Place, console: Console) -> None:
    """Prints how far a search is, as the store knows it, and which driver runs it now."""
    store, plan = Store(Path(place.storage)), plan_search(spec, place)
    listener, final = replayed(plan, store, place, None)
    console.print(
        progress_line(listener.trials, plan.search.trials, listener.judge), highlight=False
    )
    driver = lock_holder(store.root, plan.fingerprint)
    finished = final.winner is not None and not jobs_to_run(final, store)
    idle = (
        "finished" if finished else "not running; the same `run` command goes on where it stopped"
    )
    console.print(f"running: {driver}" if driver else idle)
