"""Runs that are stopped early: no failures, shown as stopped, not repeated, and resumed without the
rule."""

from __future__ import annotations

import csv
import io
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from speechft_ray.core.errors import SpecError
from speechft_ray.core.records import Job, Outcome
from speechft_ray.core.space import parse_space
from speechft_ray.core.store import Store
from speechft_ray.report.lines import group_rows
from speechft_ray.report.progress import ProgressDisplay
from speechft_ray.report.table import csv_table, incomplete_lines, table_cells
from speechft_ray.sweep.plan import Plan, make_plan
from speechft_ray.sweep.rows import read_rows
from speechft_ray.sweep.scheduler import jobs_to_run
from tests.sweep.fakes import FakeExecutor, FakeObserver, inputs, run_plan, space, sweep

WHY = "stopped early after 25 % of its updates."


class Stopping(FakeExecutor):
    """Stops the fine-tuning run of seed 1 and does the rest."""

    def outcomes(self, timeout_seconds: float) -> list[Outcome]:
        job = self.queue[0]
        if job.stage == "finetune" and "seed=1" in job.label:
            self.queue.pop(0)
            return [
                Outcome(
                    stage="finetune",
                    fingerprint=job.fingerprint,
                    label=job.label,
                    error=WHY,
                    stopped=True,
                )
            ]
        return super().outcomes(timeout_seconds)


def plan_of(stop: bool = True, **changes: Any) -> Plan:
    rule = {"stop_tuning": {"rule": "asha"}} if stop else {}
    return make_plan(sweep(**rule, **changes), inputs())


def run(plan: Plan, store: Store, executor: FakeExecutor) -> tuple[list[Outcome], list[str]]:
    observer = FakeObserver()
    failures = run_plan(plan, store, executor, observer, lambda outcome: None, threading.Event())
    return failures, observer.events


def test_a_stopped_run_is_no_failure_and_its_rows_say_so(tmp_path: Path) -> None:
    plan, store = plan_of(), Store(tmp_path)
    failures, events = run(plan, store, executor := Stopping(store))
    assert failures == []
    assert any(
        line.startswith("failed finetune narrow seed=1") for line in events
    )  # told once, and what needs it after it
    assert not any("seed=1" in label for label in executor.done)
    table_rows = read_rows(plan, store)
    assert all(row.complete for row in table_rows if row.params.get("seed") != 1)
    stopped = [row for row in table_rows if row.params.get("seed") == 1]
    assert {row.stopped for row in stopped} == {f"finetune narrow seed=1 was {WHY}"} and len(
        stopped
    ) == 3
    lines = group_rows(table_rows)
    assert all(line.count == 1 and not line.missing for line in lines if line.role != "pre-trained")
    assert f"alpha 0.25: seed 1: finetune narrow seed=1 was {WHY}" in incomplete_lines(lines)
    notes = {
        item["title"]: item["missing"] for item in csv.DictReader(io.StringIO(csv_table(lines)))
    }
    assert (
        notes["alpha 0.25"] == f"seed 1: finetune narrow seed=1 was {WHY}"
        and notes["pre-trained"] == ""
    )
    alone = group_rows([row for row in table_rows if row.params.get("seed") == 1])
    assert all(table_cells(line, ())[1].endswith(" (stopped)") for line in alone)


def test_a_second_run_does_nothing_and_one_without_the_rule_goes_on(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run(plan_of(), store, Stopping(store))
    assert jobs_to_run(plan_of(), store) == {}
    free = plan_of(stop=False)
    assert free.fingerprint == plan_of().fingerprint
    assert [job.label for job in jobs_to_run(free, store).values() if job.stage == "finetune"] == [
        "finetune narrow seed=1"
    ]
    assert run(free, store, FakeExecutor(store))[0] == []
    assert all(row.complete and row.stopped is None for row in read_rows(plan_of(), store))


def test_what_failed_is_told_before_what_was_stopped(tmp_path: Path) -> None:
    raw = space(merge=[{"donors": ["narrow", "wide"], "alpha": 0.25}])
    wide = {**raw["finetune"][0], "name": "wide", "updates": 20}
    plan = plan_of(finetune=[*raw["finetune"], wide], merge=raw["merge"])
    failures, _ = run(plan, Store(tmp_path), Stopping(Store(tmp_path), fail="finetune wide seed=0"))
    assert {(item.label, item.blocked_by) for item in failures if item.stage == "finetune"} == {
        ("finetune wide seed=0", None)
    }
    assert {item.blocked_by for item in failures if item.stage == "merge"} == {
        "finetune wide seed=0"
    }


def test_the_display_counts_what_was_stopped() -> None:
    console = Console(width=200, record=True, force_terminal=False)
    job = Job(stage="finetune", fingerprint="a", label="finetune a", payload={})
    with ProgressDisplay({"finetune": 2}, {}, console=console) as display:
        display.on_job_start(job)
        display.on_job_end(
            Outcome(stage="finetune", fingerprint="a", label="finetune a", error=WHY, stopped=True)
        )
    text = console.export_text()
    assert (
        f"stopped: finetune a: {WHY}" in text
        and "finetune 0/2 (1 stopped early)" in text
        and "failed" not in text
    )


def test_a_search_cannot_stop_its_runs() -> None:
    raw = space(
        search={"trials": 4, "axes": {"alpha": {"uniform": [0, 1]}, "seed": "donors"}},
        stop_tuning={"rule": "median"},
    )
    del raw["merge"]
    with pytest.raises(SpecError) as caught:
        parse_space(raw, "file.yaml")
    assert [path for path, _ in caught.value.mistakes] == ["stop_tuning"]
