"""The record of a sweep: the encoder of the line with the star, read by the name of the sweep."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from speechft_ray.core.errors import UserError
from speechft_ray.core.store import Store
from speechft_ray.report.lines import find_winner, group_rows
from speechft_ray.report.winner import list_records, read_record, select_winner, write_record
from speechft_ray.sweep.plan import make_plan
from speechft_ray.sweep.rows import read_rows
from tests.report.report_data import ROWS
from tests.sweep.fakes import FakeExecutor, FakeObserver, inputs, run_plan, sweep


def test_the_star_of_the_table_and_of_its_seeds_the_best_on_dev() -> None:
    lines = group_rows(ROWS)
    chosen, line = select_winner(lines), find_winner(lines)
    assert chosen is not None
    assert line is not None
    assert chosen.line == line.title
    assert chosen.params["alpha"] == 0.25  # neither the best on test nor a control
    assert (chosen.params["seed"], chosen.dev_score, chosen.test_score) == (2, 879.0, 877.0)
    assert set(chosen.seeds) == {row.key for row in ROWS if row.params["alpha"] == 0.25}


def test_without_a_star_there_is_no_winner() -> None:
    controls = [row for row in ROWS if row.params["alpha"] in (0, 1) or not row.complete]
    assert select_winner(group_rows(controls)) is None


def test_a_winner_is_read_by_the_name_of_the_sweep(tmp_path: Path) -> None:
    store, plan = Store(tmp_path), make_plan(sweep(), inputs())
    assert list_records(store) == []
    write_record(plan, store, group_rows(read_rows(plan, store)), "stopped")
    assert read_record(store, "small").winner is None
    executor, stop = FakeExecutor(store), threading.Event()
    assert run_plan(plan, store, executor, FakeObserver(), lambda outcome: None, stop) == []
    lines = group_rows(read_rows(plan, store))
    write_record(plan, store, lines, "finished")
    record = read_record(store, "small")
    assert list_records(store) == ["small"]
    assert (record.plan, record.status) == (plan.fingerprint, "finished")
    assert record.winner is not None and record.winner == select_winner(lines)
    assert record.rows == tuple(row.key for row in plan.rows)


def test_a_damaged_record_says_how_to_mend_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (tmp_path / "sweeps").mkdir()
    for text in ("{", "[]", '{"sweep": 3}'):
        (tmp_path / "sweeps" / "small.json").write_text(text)
        with pytest.raises(UserError, match="`speechft report` writes it again"):
            read_record(store, "small")
