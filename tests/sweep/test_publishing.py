"""Whatever a tracker raises, the sweep ends with its table, and the other trackers have all."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from speechft_ray.core.records import Job, Outcome
from speechft_ray.core.store import Store
from speechft_ray.sweep.plan import Plan, make_plan
from speechft_ray.sweep.protocols import Curve, EncoderRow, Model, Progress, SweepEnd, SweepInfo
from speechft_ray.sweep.publishing import RETRY_SECONDS, Publisher
from speechft_ray.sweep.rows import read_rows
from speechft_ray.tracking.jsonl import JsonlTracker, read_log
from tests.search.search_fakes import search_plan
from tests.sweep.fakes import FakeExecutor, FakeObserver, fake_facts, inputs, run_plan, sweep

CALLS = ("start", "log_curve", "log_encoder", "finish")


class Failing:
    """A tracker one of whose calls raises; it remembers the calls that ended well."""

    def __init__(self, call: str, error: Exception | None) -> None:
        self.call, self.error = call, error
        self.calls: list[str] = []

    def start(self, sweep: SweepInfo) -> None:
        self._attempt("start")

    def log_curve(self, curve: Curve) -> None:
        self._attempt("log_curve")

    def log_encoder(self, row: EncoderRow) -> None:
        self._attempt("log_encoder")

    def register_model(self, row: EncoderRow, model: Model) -> None:
        self._attempt("register_model")

    def finish(self, end: SweepEnd) -> None:
        self._attempt("finish")

    def how_to_open(self) -> str:
        return "Here."

    def _attempt(self, call: str) -> None:
        if call == self.call and self.error is not None:
            raise self.error
        self.calls.append(call)


def run(tmp_path: Path, failing: Failing) -> tuple[Plan, Store, Publisher, list[str]]:
    store, plan = Store(tmp_path / "store"), make_plan(sweep(), inputs())
    notes: list[str] = []
    publisher = Publisher(plan, store, [failing, JsonlTracker(tmp_path / "log")], notes.append)
    publisher.start()
    executor, observer = FakeExecutor(store), FakeObserver()
    assert run_plan(plan, store, executor, observer, publisher.log_outcome, threading.Event()) == []
    return plan, store, publisher, notes


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module named 'psycopg2'"),
        type("NoCredentialsError", (Exception,), {})("Unable to locate credentials"),
        KeyError("run"),
    ],
)
def test_any_error_of_a_tracker_counts_as_one_that_is_down(
    tmp_path: Path, call: str, error: Exception
) -> None:
    failing = Failing(call, error)
    plan, store, publisher, notes = run(tmp_path, failing)
    rows = read_rows(plan, store)
    sentences = publisher.finish(rows, None, "finished")
    assert all(type(error).__name__ in note for note in notes) and 1 <= len(notes) <= 2
    assert "`speechft report` with the same options sends them" in notes[-1]
    assert len(sentences) == 1 and sentences[0].startswith("Log:")
    (path,) = (tmp_path / "log").glob("*.jsonl")
    kinds = [line["kind"] for line in read_log(path)]
    assert kinds.count("encoder") == len(rows) and kinds[-1] == "finish"


def test_a_tracker_that_comes_back_gets_everything_at_the_end(tmp_path: Path) -> None:
    failing = Failing("log_curve", RuntimeError("restarting"))
    plan, store, publisher, notes = run(tmp_path, failing)
    assert len(notes) == 1 and "The sweep goes on" in notes[0]
    failing.error = None
    assert publisher.finish(read_rows(plan, store), None, "finished")[0] == "Here."
    assert failing.calls.count("log_encoder") == len(plan.rows)
    assert failing.calls.count("log_curve") == 2 and failing.calls[-1] == "finish"


def test_a_tracker_that_is_down_is_asked_again_while_the_sweep_runs(tmp_path: Path) -> None:
    failing, now, notes = Failing("log_encoder", RuntimeError("restarting")), 0.0, list[str]()
    store, plan = Store(tmp_path / "store"), make_plan(sweep(), inputs())
    publisher = Publisher(plan, store, [failing], notes.append, clock=lambda: now)
    publisher.start()
    executor, observer = FakeExecutor(store), FakeObserver()
    run_plan(plan, store, executor, observer, publisher.log_outcome, threading.Event())
    failing.calls.clear()
    publisher.log_progress({})
    now += RETRY_SECONDS
    publisher.log_progress({})
    assert failing.calls == ["start", "log_curve", "log_curve"]  # then it fails again
    failing.error = None
    now += RETRY_SECONDS
    publisher.log_progress({})
    assert failing.calls[3:] == []  # twice as long the second time
    now += RETRY_SECONDS
    publisher.log_progress({})
    assert failing.calls[3:] == ["start", *["log_curve"] * 2, *["log_encoder"] * len(plan.rows)]
    publisher.finish(read_rows(plan, store), None, "finished")
    assert failing.calls[-1] == "finish" and len(notes) == 1


def test_the_weights_of_a_winner_come_after_the_end_of_the_sweep(tmp_path: Path) -> None:
    """A store of artifacts that is down must not leave the entry of the sweep open."""
    failing = Failing("register_model", OSError("no bucket"))
    plan, store, publisher, notes = run(tmp_path, failing)
    publisher.finish(
        read_rows(plan, store), None, "finished", best=plan.rows[1].key, make_model=make_model
    )
    assert failing.calls[-1] == "finish" and "no bucket" in notes[0]


def test_what_was_not_tuned_is_no_winner_for_trackers(tmp_path: Path) -> None:
    class Last(Failing):
        end: SweepEnd

        def finish(self, end: SweepEnd) -> None:
            self.end = end

    last = Last("", None)
    plan, store, publisher, _ = run(tmp_path, last)
    rows = read_rows(plan, store)
    publisher.finish(rows, None, "finished", best=rows[1].key)
    assert last.end.winner is not None and last.end.winner.key == rows[1].key
    untuned = [replace(row, untuned="not tuned: ...") for row in rows]
    publisher.finish(untuned, None, "finished", best=rows[1].key)
    assert last.end.winner is None


def test_the_curves_of_a_search_are_logged_as_those_of_a_list(tmp_path: Path) -> None:
    plan, store, logged = search_plan(), Store(tmp_path), Curves()
    tunings = [job for job in plan.jobs.values() if job.stage == "finetune"]
    assert len(tunings) == 2 and not plan.controls.of_stage("finetune")
    first, second = tunings
    publish(store, first)
    publisher = Publisher(plan.controls, store, [logged], print, tunings)
    publisher.start()
    assert logged.keys == [first.fingerprint]  # of an earlier run
    publisher.log_outcome(publish(store, second))
    assert logged.keys == [first.fingerprint, second.fingerprint]
    publisher.set_plan(plan.controls)
    logged.keys.clear()
    again = Publisher(plan.controls, store, [logged], print, tunings)
    again.start()
    assert logged.keys == [first.fingerprint, second.fingerprint]


def test_late_points_do_not_open_a_run_that_has_ended(tmp_path: Path) -> None:
    """The second points of an evaluation wait for their time, which comes after its outcome."""
    store, plan, logged, now = Store(tmp_path), make_plan(sweep(), inputs()), Order(), [0.0]
    publisher = Publisher(plan, store, [logged], print, clock=lambda: now[0])
    publisher.start()

    def log_outcome(outcome: Outcome) -> None:
        for step in (1, 2):
            points = [(step, {"loss": 1.0 / step})]
            publisher.log_progress({outcome.fingerprint: Progress(step, 2, {}, points)})
        publisher.log_outcome(outcome)

    executor, observer = FakeExecutor(store), FakeObserver()
    assert run_plan(plan, store, executor, observer, log_outcome, threading.Event()) == []
    now[0] += 60.0
    late = {key: Progress(2, 2, {}, [(2, {"loss": 0.5})]) for key in plan.jobs}
    publisher.log_progress(late)
    now[0] += 60.0
    publisher.log_progress({})
    for row in plan.rows:
        assert ("curve", row.key) in logged.calls_in_order
        assert [call for call, key in logged.calls_in_order if key == row.key][-1] == "encoder"
    states = dict(logged.states)
    for job in plan.of_stage("finetune"):
        assert states[job.fingerprint] == "finished"


def make_model(row: EncoderRow) -> Model:
    return Model(Path(row.key), "a card", lambda folder: None)


class Curves(Failing):
    """A tracker that remembers the keys of its curves."""

    def __init__(self) -> None:
        super().__init__("", None)
        self.keys: list[str] = []

    def log_curve(self, curve: Curve) -> None:
        self.keys.append(curve.key)


class Order(Failing):
    """A tracker that remembers which run had which call, and the states of curves."""

    def __init__(self) -> None:
        super().__init__("", None)
        self.calls_in_order: list[tuple[str, str]] = []
        self.states: list[tuple[str, str]] = []

    def log_curve(self, curve: Curve) -> None:
        self.calls_in_order.append(("curve", curve.key))
        self.states.append((curve.key, curve.state))

    def log_encoder(self, row: EncoderRow) -> None:
        self.calls_in_order.append(("encoder", row.key))


def publish(store: Store, job: Job) -> Outcome:
    facts: Mapping[str, Any] = fake_facts(job)
    with store.publish(job.stage, job.fingerprint, facts):
        pass
    return Outcome(stage=job.stage, fingerprint=job.fingerprint, label=job.label)


def test_a_complete_evaluation_is_read_once_for_the_log_and_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, store, publisher, _ = run(tmp_path, Failing("", None))
    reads: list[str] = []
    manifest = Store.manifest

    def count(store: Store, stage: str, fingerprint: str) -> dict[str, Any]:
        reads.append(stage)
        return manifest(store, stage, fingerprint)

    monkeypatch.setattr(Store, "manifest", count)
    rows = publisher.read_rows(plan)
    scale = 2 * len(plan.baseline)  # its zero is read, on two splits
    assert reads.count("evaluate") == scale < len(plan.of_stage("evaluate"))
    monkeypatch.undo()
    assert rows == read_rows(plan, store) and all(row.complete for row in rows)
