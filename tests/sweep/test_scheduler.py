"""The scheduler on a fake executor: order, resuming, failures, interruption, rows of the store."""

from __future__ import annotations

import threading
import types
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechft_ray.core.errors import Interrupted
from speechft_ray.core.records import STAGES, Job, Outcome, Stage
from speechft_ray.sweep.plan import make_plan
from speechft_ray.sweep.rows import read_curves, read_references, read_rows
from speechft_ray.sweep.scheduler import JobScheduler, jobs_to_run
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


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.data())
def test_what_can_start_is_submitted_at_once_and_nothing_else(data: st.DataObject) -> None:
    """Random jobs, needs, orders of ends, failures and additions while jobs run, against a look at
    all jobs after each poll."""
    count = data.draw(st.integers(1, 12))
    jobs: dict[str, Job] = {}
    for number in range(count):
        needs = data.draw(st.sets(st.sampled_from(sorted(jobs)), max_size=3)) if jobs else set()
        stage: Stage = data.draw(st.sampled_from(STAGES))
        key = f"job{number:02}"
        jobs[key] = Job(
            stage=stage, fingerprint=key, label=key, payload={}, needs=tuple(sorted(needs))
        )
    begun: list[str] = []
    ended: list[Outcome] = []
    executor: Any = types.SimpleNamespace(
        submit=lambda job: begun.append(job.fingerprint),
        outcomes=lambda seconds: [ended.pop()] if ended else [],
        progress=dict,
    )
    scheduler = JobScheduler(executor, FakeObserver(), lambda outcome: None, threading.Event())
    first = data.draw(st.integers(0, count))
    keys = sorted(jobs)
    scheduler.add({key: jobs[key] for key in keys[:first]})
    added, done, failed = set(keys[:first]), set[str](), set[str]()
    while True:
        scheduler.poll()
        for key in sorted(added):  # needs come first
            if set(jobs[key].needs) & failed:
                failed.add(key)
        can_start = {key for key in added - failed if set(jobs[key].needs) <= done}
        assert set(begun) - failed == can_start and len(begun) == len(set(begun))
        running = sorted(set(begun) - done - failed)
        if not running and added == set(keys):
            break
        if running and (added == set(keys) or data.draw(st.booleans())):
            key = data.draw(st.sampled_from(running))
            error = data.draw(st.sampled_from([None, None, None, "made to fail"]))
            (failed if error else done).add(key)
            ended.append(Outcome(stage=jobs[key].stage, fingerprint=key, label=key, error=error))
            scheduler.poll()
        else:
            key = min(set(keys) - added)
            added.add(key)
            scheduler.add({key: jobs[key]})
    assert not scheduler.active and set(scheduler.failed) == failed


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
