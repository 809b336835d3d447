"""What a run of a sweep leaves behind about itself, and two sweeps under one name."""

from __future__ import annotations

import json
import platform
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from speechft_ray.commands.parts import resolve_place
from speechft_ray.commands.provenance import SpaceSource, begin_invocation
from speechft_ray.commands.results import describe_sweep, publish_results
from speechft_ray.commands.sweep import keep_both
from speechft_ray.core.passwords import hide_passwords
from speechft_ray.core.records import Place
from speechft_ray.core.store import Store
from speechft_ray.report.winner import list_records, read_record
from speechft_ray.stages.sources import start_encoder
from speechft_ray.sweep.invocations import read_invocations, write_invocation
from speechft_ray.sweep.plan import Plan, make_plan
from speechft_ray.sweep.publishing import Publisher
from speechft_ray.tracking.jsonl import JsonlTracker, read_log
from tests.sweep.fakes import FakeExecutor, FakeObserver, inputs, run_plan, sweep

SPACE = "# as a person wrote it\nname: small\n"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return resolve_place(sweep(), storage=tmp_path / "runs", cpu=True)


def test_a_record_says_all_that_was_run(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = "http://me:secret@mlflow:5000"
    monkeypatch.setattr(sys, "argv", ["speechft", "run", "--mlflow", address])
    store, spec = Store(tmp_path / "runs"), sweep()
    plan = make_plan(spec, inputs())
    began = begin_invocation(spec, plan.fingerprint, place, SpaceSource("small.yaml", SPACE))
    write_invocation(store, began)
    (running,) = read_invocations(store, plan.fingerprint)
    assert running == began and running.ended is None and running.status == "running"
    write_invocation(store, began.end("finished", {"address": "h:1", "nodes": 2}))

    (path,) = (tmp_path / "runs" / "provenance" / plan.fingerprint).iterdir()
    record = json.loads(path.read_text())
    assert record["space"] == SPACE and record["space_file"] == "small.yaml"
    assert record["command"] == ["speechft", "run", "--mlflow", "http://me:***@mlflow:5000"]
    assert record["versions"]["python"] == platform.python_version()
    assert {"speechft_ray", "torch", "ray", "s3prl", "mlflow"} <= set(record["versions"])
    assert record["encoder"]["fingerprint"] == start_encoder("tiny_hubert").fingerprint
    roles = {"finetune.narrow.frame", "evaluate.pr", "evaluate.sid"}
    assert set(record["corpora"]) == roles and len(set(record["corpora"].values())) == 3
    assert record["started"] < record["ended"] and record["status"] == "finished"
    assert record["host"] and record["cluster"] == {"address": "h:1", "nodes": 2}
    assert "commit" in record and record["dirty"] in (True, False)
    # The resolved spec: axes expanded, also fields at their default.
    assert [run["seed"] for run in record["spec"]["finetune"]] == [0, 1]
    for run, fields in zip(spec.finetune, record["spec"]["finetune"], strict=True):
        assert {name: fields[name] for name in type(run).model_fields} == json.loads(
            run.model_dump_json()
        )
    assert record["spec"]["evaluate"][0]["precision"] == "float32"


def test_two_runs_of_a_sweep_have_two_records_and_a_damaged_one_is_passed_over(
    place: Place, tmp_path: Path
) -> None:
    store, spec = Store(tmp_path / "runs"), sweep()
    first = begin_invocation(spec, "a" * 16, place, SpaceSource())
    write_invocation(store, first.model_copy(update={"started": "2026-01-01T00:00:00.000+00:00"}))
    write_invocation(store, first)
    (store.root / "provenance" / ("a" * 16) / "0.json").write_text("{")
    records = read_invocations(store, "a" * 16)
    assert [record.started < "2026-01-02" for record in records] == [True, False]
    assert read_invocations(store, "b" * 16) == []


def test_addresses_lose_their_passwords() -> None:
    assert hide_passwords("--mlflow=postgresql://u:p@h/d") == "--mlflow=postgresql://u:***@h/d"
    assert hide_passwords("https://host:5000/x") == "https://host:5000/x"
    for password in ("se/cret", "se@cret", "a:b"):
        assert hide_passwords(f"http://u:{password}@host:1/x") == "http://u:***@host:1/x"
    query = hide_passwords("mysql://host/d?user=u&password=p&ssl=1")
    assert query == "mysql://host/d?user=u&password=***&ssl=1"


def run_fake_sweep(
    tmp_path: Path, place: Place, notes: list[str], **changes: Any
) -> tuple[Plan, Path]:
    """Runs a sweep of made-up scores as `speechft run` does; returns its plan and its report."""
    plan, store = make_plan(sweep(**changes), inputs()), Store(tmp_path / "runs")
    run = SimpleNamespace(plan=plan, store=store, spec=plan.spec, fingerprint=plan.fingerprint)
    report = keep_both(run, tmp_path / "report", notes.append)
    info = describe_sweep(plan, store, None)
    trackers = [JsonlTracker(tmp_path / "log")]
    publisher = Publisher(plan, store, trackers, notes.append, sweep=info)
    publisher.start()
    executor, observer = FakeExecutor(store), FakeObserver()
    run_plan(plan, store, executor, observer, publisher.log_outcome, threading.Event())
    publish_results(plan, store, publisher, report, [], "finished", place)
    return plan, report


def test_a_second_sweep_under_one_name_is_kept_beside_the_first(
    tmp_path: Path, place: Place
) -> None:
    notes: list[str] = []
    first, report = run_fake_sweep(tmp_path, place, notes)
    page = (report / "index.html").read_text()
    again = run_fake_sweep(tmp_path, place, notes)
    assert again[1] == report == tmp_path / "report" and notes == []
    other, beside = run_fake_sweep(tmp_path, place, notes, merge=[{"alpha": 0.75}])
    label = f"small-{other.fingerprint[:8]}"
    assert beside == tmp_path / f"report-{other.fingerprint[:8]}"
    assert len(notes) == 1 and label in notes[0] and str(beside) in notes[0]
    assert first.fingerprint in page and first.fingerprint in (report / "index.html").read_text()
    assert other.fingerprint in (beside / "index.html").read_text()
    store = Store(tmp_path / "runs")
    assert list_records(store) == ["small", label]
    assert read_record(store, "small").plan == first.fingerprint
    assert read_record(store, label).plan == other.fingerprint
    # The first one again: nothing of the second is in its way.
    run_fake_sweep(tmp_path, place, notes)
    assert read_record(store, "small").plan == first.fingerprint and len(notes) == 1


def test_the_winner_of_a_list_of_merges_is_handed_to_trackers(tmp_path: Path, place: Place) -> None:
    plan, _ = run_fake_sweep(tmp_path, place, [])
    (log,) = (tmp_path / "log").glob("*.jsonl")
    lines = read_log(log)
    (end,) = [line for line in lines if line["kind"] == "finish"]
    selected = read_record(Store(tmp_path / "runs"), "small").winner
    assert selected is not None and end["winner"] == selected.merge
    (champion,) = [line for line in lines if line["kind"] == "champion"]
    assert champion["encoder"] == selected.merge
    card = (tmp_path / "runs" / "sweeps" / "small.card.md").read_text()
    assert f"finetune.updates: `{plan.spec.finetune[0].updates}`" in card
    assert "licence `apache-2.0`" in card and str(tmp_path) not in card
