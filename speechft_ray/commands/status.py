"""Prints the plan and the status of a sweep. Runs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from rich.console import Console
from rich.table import Table
from rich.text import Text

from speechft_ray.commands.parts import RESOURCES, set_resources
from speechft_ray.commands.verification import print_verification
from speechft_ray.core.records import STAGES
from speechft_ray.core.specs import SweepSpec
from speechft_ray.core.store import Store
from speechft_ray.search.plan import SearchPlan
from speechft_ray.search.rungs import expect_trials
from speechft_ray.sweep.lock import describe_driver
from speechft_ray.sweep.plan import Plan
from speechft_ray.sweep.scheduler import is_finished, jobs_to_run
from speechft_ray.sweep.stops import read_stopped_jobs


def print_list_plan(plan: Plan, store: Store, console: Console) -> None:
    """Prints every job of a list of merges, its fingerprint and whether it is done."""
    missing, stopped = jobs_to_run(plan, store), read_stopped_jobs(plan, store)
    for stage in STAGES:
        jobs = plan.of_stage(stage)
        left = sum(job.fingerprint in missing for job in jobs)
        console.print(
            f"\n{stage}: {len(jobs)}, of which {len(jobs) - left} need no work", style="bold"
        )
        table = Table.grid(padding=(0, 2, 0, 2))
        for job in jobs:
            if store.is_complete(stage, job.fingerprint):
                state = "done"
            elif job.fingerprint in missing:
                state = "to do"
            else:
                state = "stopped early" if job.fingerprint in stopped else "not needed"
            table.add_row(state, job.fingerprint, Text(job.label))  # no markup
        console.print(table)
    print_verification(plan, console)
    console.print(
        f"\nsweep {plan.spec.name} ({plan.fingerprint}): {len(missing)} of {len(plan.jobs)} jobs "
        "to do. Nothing was run."
    )


def print_resources(spec: SweepSpec, console: Console) -> None:
    """Prints what a job of each stage asks for of a cluster."""
    for stage, text in describe_resources(spec).items():
        console.print(f"each {stage} asks for {text}", highlight=False, soft_wrap=True)


def describe_resources(spec: SweepSpec) -> dict[str, str]:
    """Returns what a job of each stage asks for of a cluster, as text; GPUs are left out where
    there are none, unless a user asked for them."""
    texts: dict[str, str] = {}
    for stage, request in set_resources(RESOURCES, spec.resources).items():
        parts = [f"{request.cpus:g} CPU{'s' if request.cpus != 1 else ''}"]
        if stage == "evaluate" and "gpus" not in request.explicit:
            parts.append("of a GPU what its memory needs")
        elif request.gpus:
            parts.append(f"{request.gpus:g} GPU{'s' if request.gpus != 1 else ''}")
        if request.memory_bytes:
            parts.append(f"{request.memory_bytes / 1e9:g} GB of memory")
        if request.labels:
            labels = " and ".join(f"{key}={value}" for key, value in request.labels.items())
            parts.append(f"a node with {labels}")
        texts[stage] = ", ".join(parts)
    return texts


def print_list_status(plan: Plan, store: Store, console: Console) -> None:
    """Prints how many jobs of each stage are done and which driver runs the sweep now."""
    missing, stopped = jobs_to_run(plan, store), read_stopped_jobs(plan, store)
    for stage in STAGES:
        jobs = [job for job in plan.of_stage(stage) if job.fingerprint not in stopped]
        left = sum(job.fingerprint in missing for job in jobs)
        early = len(plan.of_stage(stage)) - len(jobs)
        console.print(
            f"{stage:9} {len(jobs) - left}/{len(jobs)}"
            + (f" ({early} stopped early)" if early else ""),
            highlight=False,
        )
    print_driver(store, plan.fingerprint, not missing, console)


def print_search_plan(plan: SearchPlan, store: Store, console: Console) -> None:
    """Prints what is known before the first proposal: donors, axes, tasks and budget."""
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
    tasks = ", ".join(item.label for item in plan.tasks)
    rungs = search.list_rungs()
    if rungs:
        console.print(f"\nrungs: {_describe_rungs(plan)}", highlight=False)
    console.print(
        f"\nsearch {plan.spec.name} ({plan.fingerprint}): {search.trials} proposals by "
        f"{search.sampler}, at most {search.concurrency()} at once, each evaluated on dev on "
        f"{tasks} (at most {search.trials * len(plan.tasks)} evaluations; early stops: "
        f"{'rungs' if rungs else search.pruning_rule()}); then what it chose and both "
        "controls on dev and test. Nothing was run.",
        highlight=False,
    )


def _describe_rungs(plan: SearchPlan) -> str:
    """Returns how many trials are expected at each rung, and what share of the updates that is."""
    search, expected = plan.search, expect_trials(plan.search)
    rungs = search.list_rungs()
    first = f"to {rungs[0]:g} of their updates"
    goes_on = f"one of {search.reduction_factor} goes on"
    if search.screen is not None:
        names = ", ".join(item.label for item in plan.rung_tasks(0))
        first = f"screened without training ({search.screen.by} on {names})"
        at_rungs = f", then {goes_on}" if search.rungs else ""
        goes_on = f"one of {search.screen.reduction_factor} goes on from the screen{at_rungs}"
    later = zip(rungs[1:], expected[1:], strict=True)
    counts = ", ".join(f"about {count} to {rung:g}" for rung, count in later)
    return (
        f"all {search.trials} proposals {first}, {counts} ({goes_on}; at most {search.trials} "
        f"where each is better than all before): {share_of_updates(plan, expected):.0%} of the "
        "updates of evaluating all in full. The bill counts what is expected."
    )


def share_of_updates(plan: SearchPlan, trials: Sequence[int]) -> float:
    """Returns the updates that so many trials at each rung make, of those of all in full."""
    updates = [0, *(plan.count_updates(rung) for rung in range(len(trials)))]
    steps = [after - before for before, after in pairwise(updates)]
    made = sum(count * step for count, step in zip(trials, steps, strict=True))
    return made / (plan.search.trials * updates[-1])


def print_search_status(
    search: SearchPlan, plan: Plan, store: Store, progress: str, console: Console
) -> None:
    """Prints how far a search is and which driver runs it now.

    ``plan`` is that of the selected merges once the search ended, else that of the controls.
    """
    console.print(progress, highlight=False)
    print_driver(store, search.fingerprint, is_finished(plan, store), console)


def print_driver(store: Store, fingerprint: str, finished: bool, console: Console) -> None:
    """Prints which driver runs a sweep, or how to continue it."""
    idle = (
        "finished" if finished else "not running; the same `run` command goes on where it stopped"
    )
    driver = describe_driver(store, fingerprint)
    console.print(f"running: {driver}" if driver else idle)
