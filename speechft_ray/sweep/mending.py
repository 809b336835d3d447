"""Sets damaged units of a sweep aside, so that they are computed again."""

from __future__ import annotations

from collections.abc import Callable

from speechft_ray.core.store import Store
from speechft_ray.sweep.plan import Plan
from speechft_ray.sweep.scheduler import jobs_to_run

DERIVED = ("overlap", "stopped")
"""Stages without jobs: what a report or a plan derives from others, in milliseconds."""


def set_damaged_aside(plan: Plan, store: Store, note: Callable[[str], object]) -> int:
    """Sets aside every complete unit of a plan that is damaged, and says so; returns their number.

    Manifests and sizes are checked for all units. Contents are for those that missing jobs read:
    the store of a week holds more than one wants to read at each start (``speechft verify`` reads
    it all). A store that ``checks_when_reading`` sets a unit aside when a job reads it.
    """
    count = 0
    read_contents = not store.checks_when_reading
    checked: set[str] = set()

    def check(key: str, contents: bool) -> None:
        nonlocal count
        job = plan.jobs.get(key)
        if job is None or not store.is_complete(job.stage, key):
            return
        damage = store.explain_damage(job.stage, key, contents)
        if damage is not None:
            kept = store.set_aside(job.stage, key)
            note(f"{job.label} is damaged and computed again: {damage}. It is kept as {kept}.")
            count += 1

    for key in plan.jobs:
        check(key, contents=False)
    for stage in DERIVED:
        for key in store.fingerprints(stage):
            if store.explain_damage(stage, key, read_contents) is not None:
                store.set_aside(stage, key)
                count += 1
    # What was set aside must be computed, which reads more units.
    while (
        inputs := {need for job in jobs_to_run(plan, store).values() for need in job.needs}
        - checked
    ):
        checked |= inputs
        for key in sorted(inputs):
            check(key, read_contents)
    return count
