"""The status of a sweep while it runs, and what other nodes read of it; what ``--json`` prints."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from speechft_ray.commands.current_status import (
    print_other_sweeps,
    print_progress,
    read_current_status,
)
from speechft_ray.commands.json_output import (
    describe_evaluation,
    describe_plan,
    describe_report,
    print_json,
)
from speechft_ray.commands.status import print_list_plan
from speechft_ray.commands.status_writer import StatusWriter
from speechft_ray.core.records import Outcome
from speechft_ray.core.store import Store
from speechft_ray.cost.bill import StageCost
from speechft_ray.report.progress import ProgressDisplay
from speechft_ray.sweep.lock import hold_lock
from speechft_ray.sweep.plan import Plan, make_plan
from speechft_ray.sweep.protocols import Progress
from speechft_ray.sweep.status_file import SweepStatus
from tests.report.report_data import ROWS, make_report_data
from tests.sweep.fakes import FakeExecutor, FakeObserver, inputs, run_plan, sweep


def fail(label: str, **fields: Any) -> Outcome:
    return Outcome(
        **{"stage": "evaluate", "fingerprint": label, "label": label, "error": "no", **fields}
    )


def make_display(plan: Plan, clock: Any = lambda: 0.0) -> ProgressDisplay:
    totals: dict[str, int] = {stage: len(plan.of_stage(stage)) for stage in ("merge", "evaluate")}
    return ProgressDisplay(totals, {"merge": 1}, console=Console(quiet=True), clock=clock)


@pytest.fixture
def plan() -> Plan:
    return make_plan(sweep(), inputs())


def run_whole(plan: Plan, store: Store, **fields: Any) -> None:
    executor = FakeExecutor(store, **fields)
    run_plan(plan, store, executor, FakeObserver(), lambda outcome: None, threading.Event())


def test_the_driver_writes_what_another_node_shows(plan: Plan, tmp_path: Path) -> None:
    store, clock, shown = Store(tmp_path), [0.0], list[SweepStatus]()
    display = make_display(plan, lambda: clock[0])
    writer = StatusWriter(
        "small", plan.fingerprint, tmp_path, display, shown.append, lambda: clock[0]
    )
    for row in ROWS:
        writer.add_row(row)
    job = plan.of_stage("evaluate")[0]
    display.on_job_start(job)
    clock[0] = 10.0
    display.on_progress({job.fingerprint: Progress(1, 2, {})})
    for outcome in (fail("a"), fail("b", blocked_by="a"), fail("c", stopped=True)):
        display.on_job_end(outcome)
        writer.add_outcome(outcome)
    writer.write_if_due()
    writer.write_if_due()  # not again so soon
    (status,) = shown
    count = len(plan.of_stage("evaluate"))
    assert status.jobs["evaluate"] == {
        "to_do": count - 4,
        "running": 1,
        "done": 0,
        "failed": 2,
        "stopped": 1,
    }
    total = count + len(plan.of_stage("merge"))
    assert status.percent == pytest.approx(100 * (1 + 3 + 0.5) / total, abs=0.05)
    # Neither controls nor the best on test: the best merge on dev.
    assert status.best is not None
    assert (status.best.dev_score, status.best.test_score) == (879.0, 877.0)
    assert [failure.job for failure in status.failures] == ["a"]
    with hold_lock(Store(tmp_path), plan.fingerprint, threading.Event(), lambda text: None):
        current = read_current_status(plan, plan.fingerprint, store)
    assert current.state == "running" and current.driver is not None
    assert (current.percent, current.jobs) == (status.percent, status.jobs)


def test_a_sweep_that_does_not_run_is_read_from_the_store(
    plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    run_whole(plan, store, fail="evaluate sid")
    writer = StatusWriter("small", plan.fingerprint, tmp_path, make_display(plan))
    label = next(job.label for job in plan.of_stage("evaluate") if "sid" in job.label)
    writer.add_outcome(fail(label))
    writer.write()
    current = read_current_status(plan, plan.fingerprint, store)
    assert current.state == "not running" and current.seconds_left is None
    assert current.jobs["evaluate"]["failed"] == 1
    assert current.jobs["evaluate"]["to_do"] == len(plan.of_stage("evaluate")) // 2 - 1
    print_progress(current, Console())
    assert f"failed: {label}: no" in capsys.readouterr().out
    job = next(job for job in plan.of_stage("evaluate") if "sid" in job.label)
    writer.add_outcome(fail("of many jobs", fingerprint=job.fingerprint))
    writer.write()
    current = read_current_status(plan, plan.fingerprint, store)
    assert current.jobs["evaluate"]["failed"] == 1  # one job, whatever its label
    run_whole(plan, store)
    current = read_current_status(plan, plan.fingerprint, store)
    assert (current.state, current.percent, current.failures) == ("finished", 100.0, ())
    assert current.best is not None


def test_another_sweep_that_runs_in_the_storage_is_named(
    plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    StatusWriter("small", plan.fingerprint, tmp_path, make_display(plan)).write()
    with hold_lock(store, plan.fingerprint, threading.Event(), print):
        for asked_for, shown in ((plan.fingerprint, ""), ("f" * 16, "small, 4 % done")):
            print_other_sweeps(store, asked_for, Console())
            printed = capsys.readouterr().out
            assert shown in printed and bool(printed) == bool(shown)
        (tmp_path / "status" / f"{plan.fingerprint}.json").unlink()
        print_other_sweeps(store, "f" * 16, Console())
        assert f"in this storage: {plan.fingerprint} (" in capsys.readouterr().out
    print_other_sweeps(store, "f" * 16, Console())
    assert not capsys.readouterr().out


def test_damaged_status_files_count_as_none(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "status").mkdir()
    (tmp_path / "status" / f"{plan.fingerprint}.json").write_text("{")
    current = read_current_status(plan, plan.fingerprint, Store(tmp_path))
    assert (current.percent, current.best, current.state) == (0.0, None, "not running")


def test_json_has_the_documented_keys(
    plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    spec = {"task": "pr"}
    score = {"metric": "pr.per", "split": "test", "values": [1.0, 3.0]}
    objects = {
        "status": read_current_status(plan, plan.fingerprint, store).model_dump(mode="json"),
        "plan": describe_plan(plan, plan.fingerprint, store, {"evaluate": StageCost(jobs=2)}),
        "report": describe_report(make_report_data(), tmp_path, ["MLflow: here"]),
        "evaluate": {
            "encoder": "tiny_hubert",
            "tasks": [describe_evaluation({"spec": spec, "scores": [score], "seeds": 2})],
        },
    }
    text = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text(encoding="utf-8")
    for name, value in objects.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name} --json`"))
        assert [f"`{key}`" for key in value] == row.split("|")[2].strip().split(", "), name
    (task,) = objects["evaluate"]["tasks"]
    assert task["scores"] == [{**score, "mean": 2.0, "unit": "percent"}]
    assert {job["state"] for job in objects["plan"]["jobs"]} == {"to_do"}
    assert [line["title"] for line in objects["report"]["lines"] if line["chosen"]] == [
        "alpha 0.25"
    ]
    print_json({"value": float("nan"), "text": "ä"})
    assert json.loads(capsys.readouterr().out) == {"value": None, "text": "ä"}


def test_labels_that_look_like_markup_are_printed_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A regular expression of a merge, such as `[/.]`, ended `plan` with a traceback."""
    patterns = ["feature_extractor[/.]", "[a-z]+_extractor"]
    params = {"layers": 0.5, "front_end_pattern": {"grid": patterns}}
    merge = [{"method": "layerwise", "alpha": 0.5, "params": params}]
    plan = make_plan(sweep(merge=merge), inputs())
    print_list_plan(plan, Store(tmp_path), Console(width=300))
    text = capsys.readouterr().out
    assert all(f"front_end_pattern={pattern}" in text for pattern in patterns)
