"""The jobs of a search before they are proposed, as far as their cost depends on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speechft_ray.core.rung_spec import SCREEN, SCREEN_FACT
from speechft_ray.core.specs import EvalSpec
from speechft_ray.core.store import Store
from speechft_ray.cost.jobs import PlannedJob, plan_merge
from speechft_ray.search.plan import SearchPlan
from speechft_ray.search.rungs import expect_trials, find_pause


def list_search_jobs(plan: SearchPlan, store: Store, done: int) -> list[PlannedJob]:
    """Returns the jobs of a search that are to be done at most, in the order in which they run;
    ``done`` trials have started. With rungs, as many go on as are expected to."""
    planned = [
        PlannedJob.of(job)
        for job in plan.jobs.values()
        if not store.is_complete(job.stage, job.fingerprint)
    ]
    donors = [key for _, key in plan.space.runs][:1]
    recipe = {"method": "linear", "params": {}, "donors": donors}
    for number in range(done, plan.search.trials):
        planned += _list_trial_jobs(plan, number, recipe)
    for name in ("selected", "alpha=1"):
        planned += plan_merge(name, {**recipe, "alpha": 1.0}, plan.spec.evaluate)
    return planned


def _list_trial_jobs(plan: SearchPlan, number: int, recipe: Mapping[str, Any]) -> list[PlannedJob]:
    """Returns the evaluations of a proposal: all tasks; with rungs, the parts of them that as many
    proposals are expected to reach."""
    search, tasks = plan.search, plan.tasks
    parts = [(task, {"spec": task.model_dump(mode="json")}) for task in tasks]
    if rungs := search.list_rungs():
        last, expected = len(rungs) - 1, expect_trials(search)
        reached = [rung for rung in range(last + 1) if number < expected[rung]]
        parts = [
            (task, _cut_to_rung(plan, task, rung))
            for rung in reached
            for task in (tasks if rung == last else plan.rung_tasks(rung))
        ]
    name = f"trial {number}"
    dev = {"encoder": name, "splits": ["dev"], "recipe": recipe}
    return [
        PlannedJob(
            "evaluate",
            f"{name} {task.task} {part.get('kind', part['spec']['updates'])}",
            name,
            {**part, **dev},
        )
        for task, part in parts
    ]


def _cut_to_rung(plan: SearchPlan, task: EvalSpec, rung: int) -> dict[str, Any]:
    """Returns the spec of a task with the updates that a rung adds, as a part of a payload; a
    screen has none."""
    spec, fractions = task.model_dump(mode="json"), plan.search.list_rungs()
    if fractions[rung] == SCREEN:
        return {"spec": spec, "kind": SCREEN_FACT}
    if task not in plan.probe_tasks():
        return {"spec": spec}
    before = find_pause(task, fractions[rung - 1]) if rung else 0
    interval = task.validate_every_updates or max(1, task.updates // 10)
    updates = max(1, find_pause(task, fractions[rung]) - before)
    changes = {
        "updates": updates,
        "validate_every_updates": min(interval, updates),
        "patience": None,
    }
    return {"spec": spec | changes}
