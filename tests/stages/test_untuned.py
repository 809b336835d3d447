"""Merged encoders whose fine-tuning changed nothing are found in new and in old stores."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from speechft_ray.core.store import Store
from speechft_ray.report.lines import find_winner, group_rows
from speechft_ray.stages.untuned import mark_untuned
from speechft_ray.sweep.plan import Plan, make_plan
from speechft_ray.sweep.rows import read_rows
from tests.sweep.fakes import FakeExecutor, FakeObserver, inputs, run_plan, space, sweep


def run_sweep(folder: Path, best_update: int, **changes: Any) -> tuple[Plan, Store]:
    """Runs a made-up sweep whose fine-tuning runs kept the validation of one update."""
    store, plan = Store(folder), make_plan(sweep(**changes), inputs())
    for job in plan.of_stage("finetune"):
        with store.publish("finetune", job.fingerprint, {"best_update": best_update}):
            pass
    executor, stop = FakeExecutor(store), threading.Event()
    assert run_plan(plan, store, executor, FakeObserver(), lambda outcome: None, stop) == []
    return plan, store


def untuned_by_alpha(plan: Plan, store: Store) -> dict[Any, str | None]:
    rows = mark_untuned(read_rows(plan, store), plan, store)
    return {row.params["alpha"]: row.untuned for row in rows}


def test_a_checkpoint_of_the_head_only_phase_is_found_in_the_record_of_a_run(
    tmp_path: Path,
) -> None:
    """10 updates, of which the first alone trains the head."""
    plan, store = run_sweep(tmp_path, best_update=1)
    notes = untuned_by_alpha(plan, store)
    assert notes[0] is None
    assert {alpha for alpha, note in notes.items() if note} == {0.25, 0.5, 1}
    assert notes[0.5] == (
        "not tuned: narrow seed=1 kept the encoder of update 1, and its first 1 of 10 updates "
        "train the head alone (by an earlier version; another `validate_every_updates` runs it "
        "anew)"
    )
    lines = group_rows(mark_untuned(read_rows(plan, store), plan, store))
    assert find_winner(lines) is None


def test_a_later_checkpoint_is_tuned(tmp_path: Path) -> None:
    plan, store = run_sweep(tmp_path, best_update=2)
    assert set(untuned_by_alpha(plan, store).values()) == {None}
    lines = group_rows(mark_untuned(read_rows(plan, store), plan, store))
    assert find_winner(lines) is not None


def test_a_run_that_trains_the_head_alone_says_so(tmp_path: Path) -> None:
    (first,) = space()["finetune"]
    runs = [{**first, "seed": 0, "head_only_fraction": 1.0}]
    notes = untuned_by_alpha(*run_sweep(tmp_path, best_update=10, finetune=runs))
    assert "first 10 of 10 updates" in str(notes[1]) and "lower `head_only_frac" in str(notes[1])


def test_an_early_checkpoint_of_the_head_only_phase_is_not_tuned(tmp_path: Path) -> None:
    (first,) = space()["finetune"]
    runs = [{**first, "seed": 0, "keep_at": [0.1]}]
    merges = [{"donors": ["narrow"], "checkpoint": 0.1, "alpha": 0.75}, {"alpha": 0.25}]
    notes = untuned_by_alpha(*run_sweep(tmp_path, 8, finetune=runs, merge=merges))
    assert "merge a later checkpoint" in str(notes[0.75])
    assert notes[0.25] is None


def test_a_later_stage_of_a_chain_has_the_notes_of_the_earlier_ones(tmp_path: Path) -> None:
    (first,) = space()["finetune"]
    early = {**first, "seed": 0}
    late = {**early, "name": "wide", "after": {"finetune": "narrow"}, "head_only_fraction": 0}
    merges = [{"donors": ["wide"], "alpha": 0.5}]
    plan, store = run_sweep(tmp_path, 1, finetune=[early, late], merge=merges)
    rows = mark_untuned(read_rows(plan, store), plan, store)
    assert all("narrow seed=0" in str(row.untuned) for row in rows if row.params["alpha"])
