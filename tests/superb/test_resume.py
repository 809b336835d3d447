"""Evaluations that are interrupted again and again end with the bits of an undisturbed one."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from speechft_ray.core.metrics import is_better
from speechft_ray.core.preemption import Preempted, ask_with
from speechft_ray.speech import checkpointing
from speechft_ray.superb import saved_work
from speechft_ray.superb.evaluate import evaluate
from speechft_ray.superb.folds import evaluate_folds
from speechft_ray.superb.tasks import qbe
from speechft_ray.superb.tasks.base import TASKS
from tests.contracts.test_tasks import COUNTS, spec_of
from tests.superb.toy_models import ToyEncoder, toy_corpus

CPU = torch.device("cpu")
FIELDS: dict[str, Any] = {"updates": 7, "validate_every_updates": 2, "seeds": 2}


class Killed(BaseException):
    """Ends a life; nothing on the way may catch it."""


def is_as_good(metric: str, value: float, other: float) -> bool:
    """Selects the later one of two equal validations, so that the result depends on every update
    also where nothing is learned."""
    return value == other or is_better(metric, value, other)


@pytest.fixture
def saves_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state after every update, and small batches of documents."""
    monkeypatch.setattr(saved_work, "MOST_SECONDS", 0.0)
    monkeypatch.setattr(saved_work, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(saved_work, "SAVE_SHARE", float("inf"))
    monkeypatch.setattr(qbe, "AT_ONCE", 3)


def evaluate_toy(
    name: str, work: Path | None, report: Any = lambda values: None, **fields: Any
) -> dict[str, Any]:
    """Returns the facts of one evaluation, without clock times."""
    rates = {"learning_rate": [1e-3, 1e-2]} if name in ("sid", "pr") else {}
    spec = spec_of(name, **FIELDS | rates | fields)
    facts = evaluate(spec, ToyEncoder(), toy_corpus(COUNTS), CPU, report, work=work)
    return {**facts, "seconds": None, "encoded_seconds": None}


def die_at(done: float) -> Any:
    """Returns a report that ends the life as soon as so much work is done."""

    def report(values: Mapping[str, float]) -> None:
        if values["done"] >= done:
            raise Killed

    return report


@pytest.fixture
def resumed(monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, Any]]:
    """The states that were found, in order; every second one that is saved is lost."""
    keeps = itertools.cycle([True, False])
    save, load = checkpointing.save, checkpointing.load
    states: list[Mapping[str, Any]] = []

    def find(*args: Any) -> Any:
        state = load(*args)
        states.extend([state] if state else [])
        return state

    monkeypatch.setattr(checkpointing, "load", find)
    monkeypatch.setattr(checkpointing, "save", lambda *args: save(*args) if next(keeps) else None)
    return states


@pytest.mark.usefixtures("saves_at_once")
@pytest.mark.parametrize("name", TASKS.names())
def test_every_task_goes_on_to_the_same_bits(
    name: str,
    tmp_path: Path,
    resumed: list[Mapping[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("speechft_ray.superb.selection.is_better", is_as_good)
    reports: list[float] = []
    whole = evaluate_toy(name, None, lambda values: reports.append(values["done"]))
    first_saved = sum(COUNTS.values())  # utterances encoded, and at least one update
    deaths = random.Random(name).sample([done for done in reports if done > first_saved + 3], 2)
    for done in sorted(deaths):
        with pytest.raises(Killed):
            evaluate_toy(name, tmp_path, die_at(done))
    assert evaluate_toy(name, tmp_path) == whole
    assert resumed


@pytest.mark.parametrize("name", ["sid", "pr", "qbe"])
def test_a_job_that_must_leave_its_node_saves_at_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without that, it would save nothing for hours here."""
    monkeypatch.setattr(saved_work, "LEAST_SECONDS", 1e4)
    monkeypatch.setattr(saved_work, "MOST_SECONDS", 1e4)
    monkeypatch.setattr(qbe, "AT_ONCE", 3)
    whole = evaluate_toy(name, None)
    questions = itertools.count()
    with ask_with(lambda: next(questions) >= 2), pytest.raises(Preempted):
        evaluate_toy(name, tmp_path)
    assert list(tmp_path.glob("*.pt"))
    assert evaluate_toy(name, tmp_path) == whole


@pytest.mark.usefixtures("saves_at_once")
@pytest.mark.parametrize("name", ["sid", "sd"])
def test_patience_is_taken_up_as_well(name: str, tmp_path: Path) -> None:
    """Killed after the training of some probes has ended, and while test is scored."""
    patient = {"validate_every_updates": 1, "patience": 1}
    reports: list[float] = []
    whole = evaluate_toy(
        name, None, lambda values: reports.append(values["done"]), updates=8, **patient
    )
    assert min(whole["last_update"]) < 8
    for done in sorted(random.Random(name).sample(reports[-12:-1], 3)):
        with pytest.raises(Killed):
            evaluate_toy(name, tmp_path, die_at(done), updates=8, **patient)
    assert evaluate_toy(name, tmp_path, updates=8, **patient) == whole


@pytest.mark.usefixtures("saves_at_once")
def test_damaged_states_are_skipped_with_one_line_each(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = evaluate_toy("pr", None)
    with pytest.raises(Killed):
        evaluate_toy("pr", tmp_path, die_at(sum(COUNTS.values()) + 10))
    newer = max(tmp_path.iterdir())
    newer.write_bytes(newer.read_bytes()[:-100])
    assert evaluate_toy("pr", tmp_path) == whole
    assert [record.message for record in caplog.records] == [
        f"the saved state {newer} is damaged and was skipped"
    ]
    for path in tmp_path.iterdir():
        path.write_bytes(b"")
    assert evaluate_toy("pr", tmp_path) == whole


@pytest.mark.usefixtures("saves_at_once")
def test_states_of_other_work_are_not_used(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        evaluate_toy("sid", tmp_path, die_at(sum(COUNTS.values())))
    assert list(tmp_path.iterdir())
    other = {"batch_size": 3}
    assert evaluate_toy("sid", tmp_path, **other) == evaluate_toy("sid", None, **other)


@pytest.mark.usefixtures("saves_at_once")
def test_a_folder_that_cannot_be_written_ends_the_saving_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gone = tmp_path / "gone"
    assert evaluate_toy("sid", gone) == evaluate_toy("sid", None)
    (record,) = caplog.records
    assert "cannot be saved" in record.message and "saves nothing more" in record.message


@pytest.mark.usefixtures("saves_at_once")
def test_each_fold_has_its_own_states(tmp_path: Path) -> None:
    corpora = [toy_corpus(COUNTS, seed=seed) for seed in range(2)]
    spec = spec_of("er", **FIELDS, folds={"fold": [1, 2]})

    def run(work: Path | None, report: Any = lambda values: None) -> Any:
        facts: Any = evaluate_folds(spec, ToyEncoder(), corpora, CPU, report, work=work)
        return [{**fold, "seconds": None, "encoded_seconds": None} for fold in facts["folds"]]

    whole = run(None)
    total = 2 * (sum(COUNTS.values()) + 2 * FIELDS["updates"])
    with pytest.raises(Killed):
        run(tmp_path, die_at(total - COUNTS["test"] - 2))
    assert {path.parent.name for path in tmp_path.glob("*/*")} == {"fold-0", "fold-1"}
    assert run(tmp_path) == whole


def test_a_state_is_saved_by_the_share_of_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that stands still but for us; a state takes ``cost`` seconds to write."""
    now = 0.0
    monkeypatch.setattr("speechft_ray.superb.saved_work.time.monotonic", lambda: now)

    def count_states(cost: float, seconds: int) -> list[float]:
        nonlocal now

        def save(*args: Any) -> None:
            nonlocal now
            now += cost

        monkeypatch.setattr(checkpointing, "save", save)
        work, began, at = saved_work.SavedWork(tmp_path, "x"), now, []
        work.load("probes")
        while now < began + seconds:
            now += 0.25
            if work.is_due():
                at.append(now - began)
                work.save("probes", 1, {})
        return at

    cheap = count_states(0.0, 1000)
    gaps = [later - earlier for earlier, later in zip([0.0, *cheap], cheap, strict=False)]
    assert cheap[0] == 1.0  # nothing before a second has passed
    assert all(gap <= max(1.0, 0.05 * at, 0.0) + 0.25 for gap, at in zip(gaps, cheap, strict=True))
    assert max(gaps) == 10.0
    dear = count_states(2.0, 1000)
    assert len(dear) * 2.0 <= 0.05 * 1000 + 2.0
