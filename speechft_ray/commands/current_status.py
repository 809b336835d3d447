"""The status of a sweep as any node that sees its storage can tell it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from rich.console import Console

from speechft_ray.commands.status_writer import choose_best
from speechft_ray.core.records import STAGES
from speechft_ray.core.store import Store
from speechft_ray.core.units import format_duration
from speechft_ray.report.table import one_line
from speechft_ray.sweep.lock import describe_driver, list_drivers
from speechft_ray.sweep.plan import Plan
from speechft_ray.sweep.rows import read_rows
from speechft_ray.sweep.scheduler import is_finished, jobs_to_run
from speechft_ray.sweep.status_file import (
    STATES,
    Best,
    SweepStatus,
    count_percent,
    now,
    read_status,
)
from speechft_ray.sweep.stops import read_stopped_jobs

SHOWN_FAILURES = 10


class CurrentStatus(SweepStatus):
    """The status of a sweep now. ``updated_at`` and ``seconds_left`` are those of the driver; of a
    sweep that does not run, ``seconds_left`` is ``None``."""

    state: str
    """``running``, ``finished`` or ``not running``."""
    driver: str | None
    """Host and process of the driver that runs the sweep."""


def read_current_status(plan: Plan, fingerprint: str, store: Store) -> CurrentStatus:
    """Returns the status of a sweep: what its driver wrote while it runs, else what the store has;
    failures are those of the last run.

    ``plan``: all that is planned by now; ``fingerprint``: that of the sweep.
    """
    driver = describe_driver(store, fingerprint)
    written = read_status(store.root, fingerprint)
    state = "running" if driver else "finished" if is_finished(plan, store) else "not running"
    if driver and written is not None:
        age = max(0.0, now() - written.updated_at)
        left = written.seconds_left
        fields = written.model_dump()
        fields["seconds_left"] = None if left is None else round(max(0.0, left - age), 1)
        return CurrentStatus(**fields, state=state, driver=driver)
    jobs = _count_jobs(plan, store, written)
    return CurrentStatus(
        sweep=plan.spec.name,
        fingerprint=fingerprint,
        percent=count_percent(jobs),
        jobs=jobs,
        seconds_left=0.0 if state == "finished" else None,
        best=_find_best(plan, store, written),
        failures=written.failures if written and state != "finished" else (),
        updated_at=written.updated_at if written else now(),
        state=state,
        driver=driver,
    )


def print_progress(status: CurrentStatus, console: Console) -> None:
    """Prints percent, time left, the best score so far and the failures of the last run."""
    left = status.seconds_left
    if status.state == "running":
        text = "time left not known yet" if left is None else f"about {format_duration(left)} left"
    else:
        text = status.state
    lines = [f"{status.percent:.0f} % done, {text}"]
    if status.best is not None:
        test = status.best.test_score
        scores = f"{status.best.dev_score:.2f} on dev"
        scores += f", {test:.2f} on test" if test is not None else ""
        lines.append(f"best so far: {status.best.name} ({scores})")
    lines += [f"failed: {item.job}: {item.error}" for item in status.failures[:SHOWN_FAILURES]]
    more = len(status.failures) - SHOWN_FAILURES
    lines += [f"and {more} more failures"] if more > 0 else []
    for line in lines:
        console.print(one_line(line), soft_wrap=True, highlight=False, markup=False)


def print_other_sweeps(store: Store, fingerprint: str, console: Console) -> None:
    """Prints the other sweeps that run in a storage now, each with its progress."""
    for key, driver in list_drivers(store, other_than=fingerprint).items():
        written = read_status(store.root, key)
        name = f"{written.sweep}, {written.percent:.0f} % done" if written else key
        text = f"also running in this storage: {name} ({driver})"
        console.print(text, soft_wrap=True, highlight=False, markup=False)


def _count_jobs(
    plan: Plan, store: Store, written: SweepStatus | None
) -> Mapping[str, Mapping[str, int]]:
    """Returns the number of jobs by stage and state, of a sweep that does not run. A search before
    its end has the counts of its last driver, since its plan does not list them."""
    if plan.spec.search is not None and plan.winner is None and written is not None:
        return written.jobs
    missing, stopped = jobs_to_run(plan, store), read_stopped_jobs(plan, store)
    # By label in files of older versions.
    failed = {item.fingerprint or item.job for item in written.failures} if written else set()
    counts: dict[str, dict[str, int]] = {}
    for stage in STAGES:
        states: Counter[str] = Counter()
        for job in plan.of_stage(stage):
            if job.fingerprint in stopped:
                states["stopped"] += 1
            elif job.fingerprint not in missing:
                states["done"] += 1
            else:
                states[
                    "to_do" if failed.isdisjoint((job.fingerprint, job.label)) else "failed"
                ] += 1
        if states:
            counts[stage] = {state: states[state] for state in STATES}
    return counts


def _find_best(plan: Plan, store: Store, written: SweepStatus | None) -> Best | None:
    best = written.best if written else None
    for row in read_rows(plan, store):
        best = choose_best(best, row)
    return best
