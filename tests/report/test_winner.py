"""What is kept of a sweep so that its name leads to an encoder: the star of the table, and of its
line one seed."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from speechft_ray.core.errors import UserError
from speechft_ray.core.store import Store
from speechft_ray.report.summary import find_winner, group_rows
from speechft_ray.report.winner import list_records, read_record, select_winner, write_record
from speechft_ray.sweep.plan import make_plan
from speechft_ray.sweep.rows import read_rows
from speechft_ray.sweep.scheduler import run_plan
from tests.report.test_write import ROWS
from tests.sweep.fakes import FakeExecutor, FakeObserver, inputs, sweep


def test_the_star_of_the_table_and_of_its_seeds_the_best_on_dev() -> None:
    chosen, line = select_winner(ROWS), find_winner(group_rows(ROWS))
    assert chosen is not None
    assert line is not None
    assert chosen.line == line.title
    assert chosen.params["alpha"] == 0.25  # neither the best on test nor a control
    assert (chosen.params["seed"], chosen.dev_score, chosen.test_score) == (2, 879.0, 877.0)
    assert set(chosen.seeds) == {row.key for row in ROWS if row.params["alpha"] == 0.25}


def test_no_star_no_choice() -> None:
    assert (
        select_winner([row for row in ROWS if row.params["alpha"] in (0, 1) or not row.complete])
        is None
    )


def test_a_choice_is_found_again_by_the_name_of_the_sweep(tmp_path: Path) -> None:
    store, plan = Store(tmp_path), make_plan(sweep(), inputs())
    assert list_records(store) == []
    write_record(plan, store, read_rows(plan, store), "stopped")
    assert read_record(store, "small").winner is None
    assert (
        run_plan(
            plan,
            store,
            FakeExecutor(store),
            FakeObserver(),
            lambda outcome: None,
            threading.Event(),
        )
        == []
    )
    found = read_rows(plan, store)
    write_record(plan, store, found, "finished")
    kept = read_record(store, "small")
    assert list_records(store) == ["small"]
    assert (kept.plan, kept.status, kept.winner) == (
        plan.fingerprint,
        "finished",
        select_winner(found),
    )
    assert kept.rows == tuple(row.key for row in plan.rows)


def test_a_damaged_record_says_how_to_mend_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (tmp_path / "sweeps").mkdir()
    for text in ("{", "[]", '{"sweep": 3}'):
        (tmp_path / "sweeps" / "small.json").write_text(text)
        with pytest.raises(UserError, match="`speechft report` writes it again"):
            read_record(store, "small")
