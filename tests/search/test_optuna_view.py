"""The study as a file: what optuna-dashboard would read, also after damage, and never a reason to
stop."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest

from speechft_ray.search import optuna_view
from speechft_ray.search.optuna_importance import importances
from speechft_ray.search.optuna_proposer import OptunaProposer
from speechft_ray.search.optuna_view import FILE, StudyView
from speechft_ray.search.proposals import TrialResult
from tests.search.search_fakes import search_plan


def report_trials(count: int) -> OptunaProposer:
    """Returns a proposer with ``count`` reported results: the third failed, the last was pruned."""
    plan = search_plan(
        trials=20, max_concurrent=1, constraints=[{"metric": "pr.per", "no_worse_than": 5}]
    )
    proposer = OptunaProposer(plan.search, plan.space.draw)
    for number in range(count):
        gain = proposer.ask().merge.alpha
        result = TrialResult("complete", [gain], [gain - 0.5], [gain, gain])
        if number == 2:
            result = TrialResult("failed")
        elif number == count - 1:
            result = TrialResult("pruned", steps=[gain])
        proposer.tell(number, result)
    return proposer


def view_of(folder: Path, proposer: OptunaProposer) -> StudyView:
    plan = search_plan(trials=20, max_concurrent=1)
    view = StudyView(folder, "small", proposer, plan.search)
    for number in range(len(proposer.study.trials)):
        view.copy(number)
    view.check()
    assert view.trouble is None
    return view


def read_trials(folder: Path) -> list[tuple[Any, ...]]:
    """Read as the dashboard reads it."""
    study = optuna.load_study(study_name="small", storage=f"sqlite:///{folder / FILE}")
    return [
        (t.number, t.state.name, t.params, t.values, t.intermediate_values, t.constraints)
        for t in study.trials
    ]


@pytest.fixture(scope="module")
def proposer() -> OptunaProposer:
    return report_trials(9)


def test_every_result_is_in_the_file(tmp_path: Path, proposer: OptunaProposer) -> None:
    view_of(tmp_path, proposer)
    trials = read_trials(tmp_path)
    assert [state for _, state, *_ in trials] == ["COMPLETE"] * 2 + ["FAIL"] + ["COMPLETE"] * 5 + [
        "PRUNED"
    ]
    for number, state, params, values, _, constraints in trials:
        assert params == proposer.study.trials[number].params
        if state == "COMPLETE":
            assert values == [params["alpha"]]
            violations = list(constraints.values())
            assert violations == [pytest.approx(params["alpha"] - 0.5)]
    assert len(trials[-1][4]) == 1


def test_a_second_run_adds_what_is_new_and_nothing_twice(
    tmp_path: Path, proposer: OptunaProposer
) -> None:
    first = StudyView(tmp_path, "small", proposer, search_plan(trials=20, max_concurrent=1).search)
    for number in range(4):
        first.copy(number)
    view_of(tmp_path, proposer)
    assert [number for number, *_ in read_trials(tmp_path)] == list(range(9))


@pytest.mark.parametrize("damage", ["garbage", "others"])
def test_a_damaged_file_is_made_anew(tmp_path: Path, proposer: OptunaProposer, damage: str) -> None:
    if damage == "garbage":
        (tmp_path / FILE).write_bytes(b"not a database" * 100)
    else:
        view_of(tmp_path, report_trials(3))  # the last of these was stopped: other trials than ours
    view_of(tmp_path, proposer)
    assert [state for _, state, *_ in read_trials(tmp_path)][:3] == ["COMPLETE", "COMPLETE", "FAIL"]
    assert len(read_trials(tmp_path)) == 9


def test_a_view_that_cannot_be_written_is_given_up_with_a_sentence(
    tmp_path: Path, proposer: OptunaProposer
) -> None:
    (tmp_path / "file").write_text("")
    view = StudyView(tmp_path / "file" / "search", "small", proposer, search_plan().search)
    view.copy(0)
    view.copy(1)
    view.check()
    assert view.trouble is not None and "the search goes on without this view" in view.trouble


@pytest.mark.parametrize("kind", ["exclusive", "reserved", "dashboard of another version"])
def test_a_healthy_file_that_cannot_be_used_now_is_left_as_it_is(
    tmp_path: Path, proposer: OptunaProposer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A dashboard with notes, or a backup, holds it: this run has no view, the file stays."""
    monkeypatch.setattr(optuna_view, "LOCK_SECONDS", 0.05)
    search = search_plan(trials=20, max_concurrent=1).search
    first = StudyView(tmp_path, "small", proposer, search)
    for number in range(4):
        first.copy(number)
    path = tmp_path / FILE
    before = path.stat().st_ino
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        version = other.execute("select version_num from alembic_version").fetchone()
        if kind.startswith("dashboard"):
            other.execute("update alembic_version set version_num = 'v999'")
        else:
            other.execute("begin exclusive" if kind == "exclusive" else "begin immediate")
        view = StudyView(tmp_path, "small", proposer, search)
        for number in range(9):
            view.copy(number)
        view.check()
        assert view.trouble is not None and "goes on without this view" in view.trouble
        assert "The file stays" in view.trouble
        if kind.startswith("dashboard"):
            other.execute("update alembic_version set version_num = ?", version)
        else:
            other.execute("rollback")
    assert path.stat().st_ino == before
    view_of(tmp_path, proposer)  # the next run adds what this one could not
    assert [number for number, *_ in read_trials(tmp_path)] == list(range(9))
    assert path.stat().st_ino == before


def test_importance_needs_enough_trials_and_finds_what_matters() -> None:
    assert importances(report_trials(5).study) == {}
    shares = importances(report_trials(20).study)
    assert sum(shares.values()) == pytest.approx(1)
    assert max(shares, key=lambda name: shares[name]) == "alpha"
