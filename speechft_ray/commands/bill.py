"""Prints the bill of a sweep: what there is to encode, to train and to store, and how long that
takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from rich.console import Console
from rich.table import Table

from speechft_ray.commands.calibrate import calibrate, name_device, read_calibration
from speechft_ray.commands.sizes import PlaceSizes
from speechft_ray.core.errors import UserError
from speechft_ray.core.records import Place
from speechft_ray.core.units import format_duration
from speechft_ray.cost.bill import (
    Bill,
    Change,
    StageCost,
    add_up,
    make_bill,
    make_seconds,
    price,
    rank_changes,
)
from speechft_ray.cost.jobs import (
    PlannedJob,
    count_jobs,
    halve_merges,
    halve_updates,
    use_one_seed,
)

SHOWN_CHANGES = 3


class Billable(Protocol):
    """A sweep that has a bill."""

    place: Place

    def list_planned_jobs(self) -> list[PlannedJob]:
        """Returns the jobs that are still to be done, in the order in which they run."""
        ...


def print_bill(
    sweep: Billable,
    console: Console,
    *,
    measure: bool = False,
    throughput: Mapping[str, float] = {},
) -> None:
    """Prints the bill of what is still to be done.

    Hours come from ``throughput`` (``cost.bill.THROUGHPUTS``) and from the calibration of this
    machine, which is made now with ``measure``.
    """
    jobs = sweep.list_planned_jobs()
    if not jobs:
        return
    calculator = BillCalculator(
        sweep, measure, throughput, lambda text: console.print(text, markup=False)
    )
    bill = calculator.compute(jobs)
    console.print(
        f"\nbill of what is to do, in time of one {name_device(sweep.place)}", style="bold"
    )
    console.print(_make_table(bill))
    changes = rank_changes(bill, list_changes(jobs, calculator.compute, sweep.place))
    for line in _describe(bill, changes):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


class BillCalculator:
    """Computes the bill of the jobs of a sweep, and of the same jobs with a setting changed."""

    def __init__(
        self,
        sweep: Billable,
        measure: bool,
        throughput: Mapping[str, float],
        note: Callable[[str], None],
    ) -> None:
        self._cache_gb = sweep.place.cache_gb
        self._sizes = PlaceSizes(sweep.place)
        calibration = (
            calibrate(sweep.place, sweep.list_planned_jobs(), self._sizes, note)
            if measure
            else read_calibration(sweep.place)
        )
        self._seconds_of = make_seconds(calibration, throughput)

    def compute(self, jobs: Sequence[PlannedJob], cache_gb: float | None = None) -> Bill:
        """Returns the bill of these jobs."""
        cache_bytes = 1e9 * (self._cache_gb if cache_gb is None else cache_gb)
        return make_bill(count_jobs(jobs, self._sizes, cache_bytes), self._seconds_of)


def compute_bill(sweep: Billable, *, measure: bool, note: Callable[[str], None]) -> Bill:
    """Returns the bill of what is still to be done; with ``measure`` after a calibration."""
    return BillCalculator(sweep, measure, {}, note).compute(sweep.list_planned_jobs())


def _make_table(bill: Bill) -> Table:
    table = Table.grid(padding=(0, 2, 0, 2))
    table.add_row("", "jobs", "encoded", "front end", "updates", "cache", "encoders", "time")
    for name, cost in [*bill.items(), ("in all", add_up(bill))]:
        if cost.jobs:
            table.add_row(name, *_cells(cost))
    return table


def _cells(cost: StageCost) -> list[str]:
    work = cost.work
    return [
        str(cost.jobs),
        _hours(work.encoded_seconds),
        _hours(work.front_end_seconds),
        f"{work.updates:,.0f}" if work.updates else "",
        _gigabytes(work.cache_bytes),
        _gigabytes(work.store_bytes),
        format_time(cost),
    ]


def format_time(cost: StageCost) -> str:
    """Returns the time of a stage as text; with a mark where a part of it is unknown."""
    if not cost.seconds:
        return "?" if cost.uncounted else ""
    text = (
        f"{cost.seconds / 3600:,.0f} h"
        if cost.seconds >= 360_000
        else format_duration(cost.seconds)
    )
    return f"over {text}" if cost.uncounted else text


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.{2 if seconds < 36_000 else 0}f} h" if seconds else ""


def _gigabytes(size_bytes: float) -> str:
    return f"{size_bytes / 1e9:,.{2 if size_bytes < 1e10 else 0}f} GB" if size_bytes else ""


def _describe(bill: Bill, changes: Sequence[tuple[Change, float]]) -> list[str]:
    total = add_up(bill)
    lines = [
        f"memory: features of one job take at most {_gigabytes(total.work.memory_bytes)}."
        if total.work.memory_bytes
        else ""
    ]
    if total.uncounted:
        lines.append(
            f"time: without {', '.join(sorted(total.uncounted))}: measure it here with --calibrate "
            "(some seconds, kept for later plans), or give --throughput NAME=VALUE."
        )
    texts = [f"{change.text}: {share:.0%} less" for change, share in changes[:SHOWN_CHANGES]]
    if texts:
        lines.append(f"what would change it most: {'; '.join(texts)}.")
    return [line for line in lines if line]


def list_changes(
    jobs: Sequence[PlannedJob],
    compute: Callable[..., Bill],
    place: Place,
) -> list[Change]:
    """Returns settings that a user may change, each with the bill that the sweep then has."""
    changes = [
        Change(text="half the merges", bill=compute(halve_merges(jobs))),
        Change(text=f"--cache-gb {4 * place.cache_gb:g}", bill=compute(jobs, 4 * place.cache_gb)),
    ]
    tasks = {
        job.payload["spec"]["task"]: job.payload["spec"] for job in jobs if job.stage == "evaluate"
    }
    for task, spec in tasks.items():
        changed = halve_updates(jobs, "evaluate", task)
        changes.append(Change(text=f"half the updates of `{task}`", bill=compute(changed)))
        if spec["seeds"] > 1:
            text = f"one seed of `{task}` instead of {spec['seeds']}"
            changes.append(Change(text=text, bill=compute(use_one_seed(jobs, task))))
    for name in dict.fromkeys(
        job.payload["spec"]["name"] for job in jobs if job.stage == "finetune"
    ):
        changed = halve_updates(jobs, "finetune", name)
        changes.append(Change(text=f"half the updates of `{name}`", bill=compute(changed)))
    return changes


def print_time_left(sweep: Billable, console: Console) -> None:
    """Prints how long what is to do takes on this machine, where it was calibrated."""
    calibration = read_calibration(sweep.place)
    jobs = sweep.list_planned_jobs() if calibration else []
    if not jobs:
        return
    total = add_up(compute_bill(sweep, measure=False, note=console.print))
    console.print(
        f"left: {format_time(total)} of one {name_device(sweep.place)} as calibrated here",
        highlight=False,
    )


def expect_seconds(sweep: Billable) -> dict[str, float]:
    """Returns the seconds that each job still to be done takes on this machine, by fingerprint;
    empty without a calibration of it, and without jobs whose time is unknown."""
    calibration = read_calibration(sweep.place)
    jobs = sweep.list_planned_jobs() if calibration else []
    if not jobs:
        return {}
    try:
        works = count_jobs(jobs, PlaceSizes(sweep.place), sweep.place.cache_gb * 1e9)
    except UserError:  # labels that do not fit: the job says so
        return {}
    seconds_of = make_seconds(calibration)
    costs = {job.key: price(work, seconds_of) for job, (_, work) in zip(jobs, works, strict=True)}
    return {key: cost.seconds for key, cost in costs.items() if not cost.uncounted}
