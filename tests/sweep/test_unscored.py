"""Metrics that cannot be scored are left out of the score with a sentence; tables go on."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from speechft_ray.core.records import Job
from speechft_ray.core.store import Store
from speechft_ray.report.comparison import headline
from speechft_ray.report.lines import group_rows
from speechft_ray.report.winner import select_winner
from speechft_ray.report.write import PAGE, ReportData, write_report
from speechft_ray.sweep.plan import Plan, make_plan
from speechft_ray.sweep.publishing import Publisher, make_sweep_info
from speechft_ray.sweep.rows import read_references, read_rows
from speechft_ray.tracking.jsonl import JsonlTracker, read_log
from tests.sweep.fakes import FakeExecutor, FakeObserver, fake_facts, inputs, run_plan, sweep

Change = Callable[[Job, str, str], float | None]
"""The value of a job in a metric and split, ``None`` for the one that it has anyway."""
PERFECT = "SID ACC is not part of the score"


def run_sweep(tmp_path: Path, change: Change, drop: str = "") -> tuple[Plan, Store, Path]:
    """Runs a sweep to its end as the driver does, and writes its report and its log."""
    store, plan = Store(tmp_path / "store"), make_plan(sweep(), inputs())

    def make_facts(job: Job) -> dict[str, Any]:
        facts = fake_facts(job)
        for score in facts.get("scores", []):
            value = change(job, score["metric"], score["split"])
            if value is not None:
                score["values"] = [value, value]
        if drop and job.payload.get("encoder", "") is None:
            facts["scores"] = [item for item in facts["scores"] if item["metric"] != drop]
        return facts

    publisher = Publisher(plan, store, [JsonlTracker(tmp_path / "log")], lambda text: None)
    publisher.start()
    executor = FakeExecutor(store, facts=make_facts)
    failed = run_plan(
        plan, store, executor, FakeObserver(), publisher.log_outcome, threading.Event()
    )
    assert failed == []
    rows = read_rows(plan, store)
    data = ReportData(
        sweep=make_sweep_info(plan), rows=rows, references=read_references(plan, store)
    )
    report = tmp_path / "report"
    write_report(report, data)
    publisher.finish(rows, report, "finished")
    return plan, store, report


def change_baseline(values: dict[tuple[str, str], float]) -> Change:
    """Returns values of FBank by metric and split."""

    def change(job: Job, metric: str, split: str) -> float | None:
        return values.get((metric, split)) if job.payload["encoder"] is None else None

    return change


def read_encoders(tmp_path: Path) -> list[dict[str, Any]]:
    (path,) = (tmp_path / "log").glob("*.jsonl")
    return [line for line in read_log(path) if line["kind"] == "encoder"]


@pytest.mark.parametrize("split", ["test", "dev"])
@pytest.mark.parametrize("value", [100.0, 104.0])
def test_a_perfect_zero_leaves_its_metric_out_on_both_splits(
    tmp_path: Path, split: str, value: float
) -> None:
    plan, store, report = run_sweep(tmp_path, change_baseline({("sid.accuracy", split): value}))
    for row in read_rows(plan, store):
        for part, name in ((row.test, "test"), (row.dev, "dev")):
            ((zero, one),) = read_references(plan, store, name).values()
            expected = 1000 * (part["pr.per"] - zero) / (one - zero)
            assert part["score"] == pytest.approx(expected)
            assert "sid.accuracy" in part  # it stays in the table
    for file in ("table.md", PAGE):
        assert (report / file).read_text().count(PERFECT) == 1
    encoders = read_encoders(tmp_path)
    assert len(encoders) == len(plan.rows)
    assert all(PERFECT in line["unscored"][0] for line in encoders)


@pytest.mark.parametrize("drop", ["", "sid.accuracy"])
def test_a_zero_that_is_missing_or_not_a_number_leaves_its_metric_out(
    tmp_path: Path, drop: str
) -> None:
    plan, store, _ = run_sweep(tmp_path, change_baseline({}), drop)
    if not drop:
        write_value(store, plan.baseline[1], math.nan)
    for row in read_rows(plan, store):
        assert row.test["score"] == pytest.approx(
            1000 * (1 - row.test["pr.per"] / read_references(plan, store)["pr.per"][0])
        )
        assert row.unscored[0].startswith(PERFECT)


def test_without_any_scored_metric_the_table_has_no_score_and_no_star(tmp_path: Path) -> None:
    change = change_baseline({("sid.accuracy", "test"): 100, ("pr.per", "dev"): 0})
    plan, store, report = run_sweep(tmp_path, change)
    lines = group_rows(read_rows(plan, store))
    assert select_winner(lines) is None
    assert headline(lines) == (
        "No merge has a score, so none could be chosen; a sentence below says why."
    )
    table = (report / "table.md").read_text()
    assert "SID ACC is not part" in table and "PR PER is not part" in table
    assert all(line.count and line.mean.keys() == {"pr.per", "sid.accuracy"} for line in lines)
    assert len(read_encoders(tmp_path)) == len(plan.rows)


def test_one_encoder_without_a_finite_metric_has_no_score_and_the_others_have(
    tmp_path: Path,
) -> None:
    plan, store, _ = run_sweep(tmp_path, change_baseline({}))
    victim = plan.rows[2]
    write_value(store, victim.evaluations[0], math.nan)
    rows = {row.key: row for row in read_rows(plan, store)}
    assert rows[victim.key].unscored == (
        f"`{victim.title}` has no score: its PR PER on test is not a finite number.",
    )
    assert [key for key, row in rows.items() if "score" not in row.test] == [victim.key]
    line = next(
        item for item in group_rows(rows.values()) if victim.key in [row.key for row in item.rows]
    )
    assert line.score is None  # not the score of the other seed alone
    info = make_sweep_info(plan)
    page = write_report(tmp_path / "again", ReportData(sweep=info, rows=tuple(rows.values())))
    assert "its PR PER on test is not a finite number" in page.read_text()


def test_rows_are_logged_though_the_zero_failed(tmp_path: Path) -> None:
    store, plan = Store(tmp_path / "store"), make_plan(sweep(), inputs())
    tracker = JsonlTracker(tmp_path / "log")
    publisher = Publisher(plan, store, [tracker], lambda text: None)
    publisher.start()
    executor = FakeExecutor(store, fail="fbank")
    failed = run_plan(
        plan, store, executor, FakeObserver(), publisher.log_outcome, threading.Event()
    )
    assert len(failed) == 2
    publisher.finish(read_rows(plan, store), None, "failed")
    assert len(read_encoders(tmp_path)) == len(plan.rows)


def write_value(store: Store, evaluation: str, value: float) -> None:
    """Replaces all values of an evaluation, as an older version could have written them."""
    path = store.folder("evaluate", evaluation) / "manifest.json"
    facts = store.manifest("evaluate", evaluation)  # without a checksum, like that version's
    facts["scores"] = [{**item, "values": [value, value]} for item in facts["scores"]]
    path.write_text(json.dumps(facts))
