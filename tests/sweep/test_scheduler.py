"""The scheduler on a fake executor: order, resuming, failures, interruption, rows of the store."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from speechft_ray.core.errors import Interrupted
from speechft_ray.core.records import Outcome
from speechft_ray.sweep.plan import make_plan
from speechft_ray.sweep.rows import read_curves, read_references, read_rows
from speechft_ray.sweep.scheduler import jobs_to_run
from tests.sweep.fakes import FakeExecutor, FakeObserver, inputs, run_plan, store_at, sweep


def run(
    tmp_path: Path, executor: FakeExecutor | None = None, stop: threading.Event | None = None
) -> list[Outcome]:
    store = store_at(tmp_path)
    plan = make_plan(sweep(), inputs())
    return run_plan(
        plan,
        store,
        executor or FakeExecutor(store),
        FakeObserver(),
        lambda outcome: None,
        stop or threading.Event(),
    )


def test_everything_runs_once_and_a_second_run_does_nothing(tmp_path: Path) -> None:
    plan, first, second = (
        make_plan(sweep(), inputs()),
        FakeExecutor(store_at(tmp_path)),
        FakeExecutor(store_at(tmp_path)),
    )
    assert run(tmp_path, first) == []
    assert sorted(first.done) == sorted(job.label for job in plan.jobs.values())
    assert run(tmp_path, second) == []
    assert second.done == []


def test_order_of_completion_does_not_change_the_rows(tmp_path: Path) -> None:
    plan = make_plan(sweep(), inputs())
    by_order = []
    for name, last_first in (("one", False), ("other", True)):
        store = store_at(tmp_path / name)
        assert run(tmp_path / name, FakeExecutor(store, last_first=last_first)) == []
        by_order.append(read_rows(plan, store))
    assert by_order[0] == by_order[1]
    assert all(row.complete and "score" in row.test and "score" in row.dev for row in by_order[0])


def test_a_failure_stays_where_it_happens(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    executor = FakeExecutor(store, fail="finetune narrow seed=1")
    failures = run(tmp_path, executor)
    assert {failure.label for failure in failures if "made to fail" in str(failure.error)} == {
        "finetune narrow seed=1"
    }
    blocked = [failure for failure in failures if "not started, because" in str(failure.error)]
    assert len(blocked) == 3 + 6  # its merges and their evaluations
    assert sum(label.startswith("evaluate") for label in executor.done) == 16 - 6
    # The next run tries again and needs nothing else.
    again = FakeExecutor(store)
    assert run(tmp_path, again) == []
    assert len(again.done) == 1 + 9


def test_a_stop_keeps_what_is_finished(tmp_path: Path) -> None:
    store, stop = store_at(tmp_path), threading.Event()
    plan, executor, count = make_plan(sweep(), inputs()), FakeExecutor(store), 0

    def stop_after_five(outcome: Outcome) -> None:
        nonlocal count
        count += 1
        if count == 5:
            stop.set()

    with pytest.raises(Interrupted):
        run_plan(plan, store, executor, FakeObserver(), stop_after_five, stop)
    assert executor.stopped
    rest = FakeExecutor(store)
    assert run(tmp_path, rest) == []
    assert not set(executor.done) & set(rest.done)
    assert len(executor.done) + len(rest.done) == len(plan.jobs)


def test_what_nobody_needs_is_not_made_again(tmp_path: Path) -> None:
    store, plan = store_at(tmp_path), make_plan(sweep(), inputs())
    run(tmp_path)
    for job in (*plan.of_stage("corpus"), *plan.of_stage("merge")):
        store.discard(job.stage, job.fingerprint)
    assert jobs_to_run(plan, store) == {}
    lost = plan.of_stage("evaluate")[-1]
    store.discard("evaluate", lost.fingerprint)
    needed = jobs_to_run(plan, store)
    assert lost.fingerprint in needed
    assert {job.stage for job in needed.values()} <= {"corpus", "merge", "evaluate"}


def test_score_by_hand(tmp_path: Path) -> None:
    """1000 x mean over tasks of (s - FBank) / (topline - FBank), from the numbers in the store."""
    store, plan = store_at(tmp_path), make_plan(sweep(), inputs())
    run(tmp_path)
    references = read_references(plan, store)
    for row in read_rows(plan, store):
        parts = [(row.test[name] - zero) / (one - zero) for name, (zero, one) in references.items()]
        assert row.test["score"] == pytest.approx(1000 * sum(parts) / 2)
    assert references["pr.per"][1] == 0
    assert references["sid.accuracy"][1] == 100


def test_incomplete_rows_have_no_score(tmp_path: Path) -> None:
    store, plan = store_at(tmp_path), make_plan(sweep(), inputs())
    run(tmp_path)
    victim = plan.rows[2]
    store.discard("evaluate", victim.evaluations[0])
    row = next(row for row in read_rows(plan, store) if row.key == victim.key)
    assert not row.complete
    assert "score" not in row.test


def test_curves_come_from_the_store(tmp_path: Path) -> None:
    run(tmp_path)
    curves = read_curves(make_plan(sweep(), inputs()), store_at(tmp_path))
    assert [curve.params["seed"] for curve in curves] == [0, 1]
    assert curves[0].points == [(1, {"loss": 2.0}), (2, {"loss": 1.0})]
