"""What the verbs print with ``--json``: one object, with keys that stay (docs/monitoring.md)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import typer

from speechft_ray.commands.bill import Billable, BillCalculator
from speechft_ray.commands.parts import RESOURCES, set_resources
from speechft_ray.core.metrics import metric
from speechft_ray.core.records import STAGES, read_scores
from speechft_ray.core.store import Store
from speechft_ray.cost.bill import Bill
from speechft_ray.report.lines import find_winner
from speechft_ray.report.write import ReportData
from speechft_ray.sweep.plan import Plan
from speechft_ray.sweep.scheduler import jobs_to_run
from speechft_ray.sweep.stops import read_stopped_jobs


def print_json(value: Mapping[str, Any]) -> None:
    """Prints an object to standard output. Numbers that JSON lacks are null."""
    typer.echo(json.dumps(_replace_nan(value), indent=1, ensure_ascii=False))


class Planned(Billable, Protocol):
    """A sweep that is planned; ``commands.sweep.Sweep`` is one."""

    plan: Plan
    store: Store
    fingerprint: str


def print_json_plan(sweep: Planned, measure: bool, throughput: Mapping[str, float]) -> None:
    """Prints the plan of a sweep with its bill; with ``measure`` after a calibration."""
    calculator = BillCalculator(sweep, measure, throughput, lambda text: typer.echo(text, err=True))
    bill = calculator.compute(sweep.list_planned_jobs())
    print_json(describe_plan(sweep.plan, sweep.fingerprint, sweep.store, bill))


def describe_plan(plan: Plan, fingerprint: str, store: Store, bill: Bill) -> dict[str, Any]:
    """Returns every job that is planned by now with its state, ``done``, ``to_do``, ``stopped`` or
    ``not_needed``, and the bill of what is to do by stage. Unknown seconds are ``None``."""
    missing, stopped = jobs_to_run(plan, store), read_stopped_jobs(plan, store)

    def tell_state(stage: str, key: str) -> str:
        if store.is_complete(stage, key):
            return "done"
        return "to_do" if key in missing else "stopped" if key in stopped else "not_needed"

    jobs = [
        {
            "stage": stage,
            "fingerprint": job.fingerprint,
            "label": job.label,
            "state": tell_state(stage, job.fingerprint),
        }
        for stage in STAGES
        for job in plan.of_stage(stage)
    ]
    costs = {
        stage: {
            "jobs": cost.jobs,
            "encoded_seconds": cost.work.encoded_seconds,
            "front_end_seconds": cost.work.front_end_seconds,
            "updates": cost.work.updates,
            "cache_bytes": cost.work.cache_bytes,
            "store_bytes": cost.work.store_bytes,
            "memory_bytes": cost.work.memory_bytes,
            "seconds": None if cost.uncounted else cost.seconds,
            "without_seconds": sorted(cost.uncounted),
        }
        for stage, cost in bill.items()
        if cost.jobs
    }
    resources = {
        stage: request.model_dump(include={"cpus", "gpus", "memory_bytes", "labels"})
        for stage, request in set_resources(RESOURCES, plan.spec.resources).items()
    }
    return {
        "sweep": plan.spec.name,
        "fingerprint": fingerprint,
        "jobs": jobs,
        "resources": resources,
        "bill": costs,
    }


def describe_report(data: ReportData, report: Path, how_to_open: Sequence[str]) -> dict[str, Any]:
    """Returns the table with the winner, its files, and a row for each merged encoder."""
    winner = find_winner(data.lines)
    rows = [
        {
            "encoder": row.key,
            "title": row.title,
            "params": dict(row.params),
            "test": dict(row.test),
            "dev": dict(row.dev),
            "complete": row.complete,
            "notes": [
                note for note in (*row.unscored, row.stopped, row.untuned, row.unlearnt) if note
            ],
        }
        for row in data.rows
    ]
    lines = [
        {
            "title": line.title,
            "encoders": [row.key for row in line.rows],
            "complete": line.count,
            "test_score": line.score,
            "chosen": line is winner,
        }
        for line in data.lines
    ]
    return {
        "sweep": data.sweep.name,
        "fingerprint": data.sweep.key,
        "report": str(report / "index.html"),
        "trackers": list(how_to_open),
        "lines": lines,
        "rows": rows,
    }


def describe_evaluation(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the scores of one task with their units, and what was chosen on dev."""
    scores = [
        {
            "metric": score.metric,
            "split": score.split,
            "mean": score.mean,
            "values": list(score.values),
            "unit": metric(score.metric).unit,
        }
        for score in read_scores(facts)
    ]
    names = ("task", "learning_rate", "updates", "seeds", "utterances", "skipped", "notes")
    chosen = {name: facts[name] for name in names if name in facts}
    task = (facts.get("spec") or {}).get("task")
    return {"task": task, **chosen, "scores": scores}


def _replace_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _replace_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
