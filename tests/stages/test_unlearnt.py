"""Fine-tuning runs that learnt next to nothing are named in the table."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from speechft_ray.core.store import Store
from speechft_ray.report.lines import find_winner, group_rows
from speechft_ray.report.table import incomplete_lines
from speechft_ray.stages.unlearnt import mark_unlearnt
from speechft_ray.sweep.plan import Plan, make_plan
from speechft_ray.sweep.protocols import EncoderRow
from speechft_ray.sweep.rows import read_rows
from tests.sweep.fakes import FakeExecutor, FakeObserver, inputs, run_plan, space, sweep

ERRORS, CORRECT = "finetune.token_error_rate", "finetune.accuracy"


def run_sweep(
    folder: Path, *objectives: dict[str, Any], **changes: Any
) -> tuple[Plan, list[EncoderRow]]:
    """Runs a made-up sweep whose fine-tuning runs had these objectives; returns its rows."""
    store, plan = Store(folder), make_plan(sweep(**changes), inputs())
    for job in plan.of_stage("finetune"):
        facts = {"best_update": 10, "objectives": list(objectives)}
        with store.publish("finetune", job.fingerprint, facts):
            pass
    executor, stop = FakeExecutor(store), threading.Event()
    assert run_plan(plan, store, executor, FakeObserver(), lambda outcome: None, stop) == []
    return plan, mark_unlearnt(read_rows(plan, store), plan, store)


def result(metric: str, best: float, constant: float) -> dict[str, Any]:
    return {"metric": metric, "best_dev": best, "constant_dev": constant}


@pytest.mark.parametrize(
    ("objective", "learnt"),
    [
        (result(ERRORS, 100.0, 100.0), False),
        (result(ERRORS, 99.98, 100.0), False),
        (result(ERRORS, 62.0, 100.0), True),
        (result(CORRECT, 25.0, 25.0), False),
        (result(CORRECT, 28.0, 25.0), False),
        (result(CORRECT, 40.0, 25.0), True),
        ({"metric": ERRORS, "best_dev": 100.0}, True),  # of an earlier version: not known
    ],
)
def test_a_run_must_be_better_than_one_answer_for_everything(
    tmp_path: Path, objective: dict[str, Any], learnt: bool
) -> None:
    _, rows = run_sweep(tmp_path, objective)
    assert {row.params["alpha"]: row.unlearnt is None for row in rows} == {
        0: True,
        **dict.fromkeys((0.25, 0.5, 1), learnt),
    }


def test_the_sentence_names_the_run_its_numbers_and_what_to_change(tmp_path: Path) -> None:
    (first,) = space()["finetune"]
    poor, good = result(ERRORS, 99.98, 100.0), result(CORRECT, 80.0, 25.0)
    _, rows = run_sweep(tmp_path, good, poor, finetune=[{**first, "seed": 0}])
    lines = group_rows(rows)
    (sentence,) = incomplete_lines(lines)
    assert sentence == (
        "learnt next to nothing: narrow seed=0 has Dev TER 100.0 at best, where one answer for "
        "everything has 100.0 (raise `updates` or change `peak_learning_rate`)"
    )
    assert find_winner(lines) is not None  # its encoder did change: the scores say what of it
