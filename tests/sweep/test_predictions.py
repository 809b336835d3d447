"""Predicted merges: their jobs, their identity, and which of them are verified."""

from __future__ import annotations

import statistics
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from speechft_ray.core.store import Store
from speechft_ray.cost.jobs import PlannedJob
from speechft_ray.report.curve_section import describe_predictions, make_curve_section
from speechft_ray.report.lines import find_winner, group_rows
from speechft_ray.report.table import PREDICTED, make_legend, make_records, table_cells
from speechft_ray.sweep.plan import Plan, make_plan
from speechft_ray.sweep.predictions import is_prediction
from speechft_ray.sweep.rows import read_rows
from speechft_ray.sweep.verification import add_verified, count_unverified, list_curves
from tests.sweep.fakes import FakeExecutor, FakeObserver, fake_facts, inputs, run_plan, sweep

CURVE = {"curve": 9, "verify": 2}


def plan_curve(**curve: Any) -> Plan:
    return make_plan(sweep(merge=[{"alpha": {**CURVE, **curve}}]), inputs())


def run(plan: Plan, store: Store) -> None:
    def facts(job: Any) -> dict[str, Any]:
        facts = {**fake_facts(job), "spec": job.payload.get("spec")}
        if "compared" in job.payload:
            facts["feature_error"] = [0.01, 0.05]
        if job.payload.get("splits") == ["dev"]:
            facts["scores"] = [score for score in facts["scores"] if score["split"] == "dev"]
        return facts

    executor = FakeExecutor(store, facts=facts)
    assert run_plan(plan, store, executor, FakeObserver(), lambda _: None, threading.Event()) == []


@pytest.fixture
def verified(tmp_path: Path) -> tuple[Plan, Store]:
    """A curve that was predicted and verified."""
    plan, store = plan_curve(), Store(tmp_path)
    run(plan, store)
    plan = add_verified(plan, store, inputs())
    run(plan, store)
    return plan, store


def test_predictions_are_evaluations_on_dev_without_a_merge() -> None:
    plan = plan_curve()
    # 2 seeds x (encodings 0.5 and 1, predictions at the other 6 of 0.125, ..., 0.875) + alpha 0.
    assert Counter(is_prediction(row.params) for row in plan.rows) == {True: 12, False: 5}
    assert len(plan.of_stage("merge")) == 5
    predicted = [job for job in plan.of_stage("evaluate") if "predicted" in job.payload]
    assert len(predicted) == 12 * 2
    assert all(job.payload["splits"] == ["dev"] for job in predicted)
    # Each waits for its three encodings: their merges, and their evaluations, which store features.
    for job in predicted:
        needed = [plan.jobs[need] for need in job.needs]
        stages = Counter(other.stage for other in needed)
        assert (stages["merge"], stages["evaluate"]) == (3, 3)
        specs = [other.payload["spec"] for other in needed if other.stage == "evaluate"]
        assert specs == [job.payload["spec"]] * 3


def test_the_memory_of_an_evaluation_is_that_of_all_its_encoders(
    tmp_path: Path,
) -> None:
    """One that is predicted has its three encodings, one that verifies them itself beside."""
    asked = replace(inputs(), gpu_memory=lambda spec, key: 100)
    store = Store(tmp_path)
    plan = make_plan(sweep(merge=[{"alpha": CURVE}]), asked)
    run(plan, store)
    verified = add_verified(plan, store, asked)
    needs: dict[str, set[int]] = {"own": set(), "predicted": set(), "compared": set()}
    for job in verified.of_stage("evaluate"):
        kind = next((name for name in ("predicted", "compared") if name in job.payload), "own")
        needs[kind].add(job.resources.gpu_memory_bytes)
    assert needs == {"own": {100}, "predicted": {300}, "compared": {400}}


def test_a_prediction_has_the_identity_of_no_merge() -> None:
    grid = make_plan(sweep(merge=[{"alpha": {"grid": [n / 8 for n in range(9)]}}]), inputs())
    curve, other = plan_curve(), plan_curve(encode=[0, 1])
    predicted = {row.key for row in curve.rows if is_prediction(row.params)}
    assert predicted.isdisjoint(row.key for row in grid.rows)
    assert predicted.isdisjoint(row.key for row in other.rows)
    jobs = {key for row in curve.rows if row.key in predicted for key in row.evaluations}
    assert jobs.isdisjoint(grid.jobs)
    # All that is not predicted is shared with the grid.
    assert set(curve.jobs) - jobs <= set(grid.jobs)
    assert len({grid.fingerprint, curve.fingerprint, plan_curve(verify=3).fingerprint}) == 3


def test_nothing_is_verified_before_all_of_a_curve_is_predicted(tmp_path: Path) -> None:
    plan, store = plan_curve(), Store(tmp_path)
    assert add_verified(plan, store, inputs()) is plan
    assert count_unverified(plan) == 2 * 2
    run(plan, store)
    last = next(row for row in reversed(plan.rows) if is_prediction(row.params))
    store.set_aside("evaluate", last.evaluations[0])
    assert add_verified(plan, store, inputs()) is plan


def test_the_best_means_over_seeds_are_verified_for_every_seed(
    verified: tuple[Plan, Store],
) -> None:
    plan, store = verified
    scores: dict[float, list[float]] = {}
    for row in read_rows(plan, store):
        if is_prediction(row.params):
            assert row.test == {}
            scores.setdefault(float(row.params["alpha"]), []).append(row.dev["score"])
    means = {alpha: statistics.fmean(values) for alpha, values in scores.items()}
    best = sorted(means, key=lambda alpha: -means[alpha])[:2]
    made = Counter(float(row.params["alpha"]) for row in plan.rows if not is_prediction(row.params))
    assert made == {0.0: 1, 0.5: 2, 1.0: 2, best[0]: 2, best[1]: 2}
    assert count_unverified(plan) == 0
    # The verified rows are those of a plain list: another sweep finds them in the store.
    grid = make_plan(sweep(merge=[{"alpha": {"grid": best}}]), inputs())
    assert {row.key for row in grid.rows} <= {row.key for row in plan.rows}
    assert plan.fingerprint == plan_curve().fingerprint
    assert add_verified(plan, store, inputs()).rows == plan.rows
    (curve,) = list_curves(plan)
    assert (len(curve.rows), curve.verify) == (6, 2)


def test_a_prediction_is_marked_and_never_wins(verified: tuple[Plan, Store]) -> None:
    plan, store = verified
    rows = read_rows(plan, store)
    lines = group_rows(rows)
    winner = find_winner(lines)
    assert winner is not None
    assert winner.role == "merge"
    best = max(line.dev_mean["score"] for line in lines if line.role == "merge")
    assert winner.dev_mean["score"] == best
    predicted = [line for line in lines if line.role == "prediction"]
    assert [table_cells(line, [])[0] for line in predicted] == [PREDICTED] * 6
    assert all("score" in line.dev_mean and not line.mean for line in predicted)
    assert PREDICTED in make_legend(lines)
    _, records = make_records(lines)
    roles = Counter((record["role"], record.get("predicted_from")) for record in records)
    assert roles["prediction", "0,0.5,1"] == 6
    # Without its verification nothing of the curve but the encoding at 0.5 can win.
    (only,) = [line for line in group_rows(rows[:17]) if line.chosen]
    assert only.alpha == 0.5


def test_the_section_compares_predicted_with_verified(verified: tuple[Plan, Store]) -> None:
    lines = group_rows(read_rows(*verified))
    section = make_curve_section(lines)
    assert section is not None
    assert len(section.rows) == 2
    for _, _, alpha, predicted, real, difference, test, errors in section.rows:
        assert float(difference) == pytest.approx(float(real) - float(predicted), abs=0.011)
        assert 0 < float(alpha) < 1
        assert test
        assert errors == "1.0 5.0"
    assert section.image is not None
    (sentence,) = describe_predictions(lines)
    assert "6 alphas were predicted" in sentence
    assert "worst layer were wrong by 5.0% at most" in sentence
    grid = make_plan(sweep(), inputs())
    assert make_curve_section(group_rows(read_rows(grid, verified[1]))) is None


def test_jobs_of_a_bill_say_what_a_prediction_reads() -> None:
    plan = plan_curve()
    job = next(job for job in plan.of_stage("evaluate") if "predicted" in job.payload)
    encodings = PlannedJob.of(job).payload["predicted"]["encodings"]
    assert [alpha for alpha, _ in encodings] == [0.0, 0.5, 1.0]
    assert {key for _, key in encodings} <= {row.key for row in plan.rows}
