"""Training that pauses at rungs: the scores by then, and in the end the bits of a training that did
not pause, with no update made twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from speechft_ray.core.errors import UserError
from speechft_ray.speech.encoders.base import HiddenStates
from speechft_ray.superb import saved_work
from speechft_ray.superb.evaluate import evaluate
from speechft_ray.superb.stacked import _Heads
from speechft_ray.superb.tasks.base import TASKS
from speechft_ray.superb.training import ProbeTrainer
from tests.contracts.test_tasks import COUNTS, spec_of
from tests.superb.test_resume import Killed, die_at, is_as_good
from tests.superb.toy_models import ToyEncoder, toy_corpus

UPDATES = 7
RUNGS = (1, 4, 5)
"""One before the first validation, one at a validation, one between two."""
TRAINED = [
    name if name in ("sid", "pr") else pytest.param(name, marks=pytest.mark.slow)
    for name in TASKS.names()
    if TASKS.get(name).trains
]


def evaluate_toy(
    name: str,
    work: Path | None,
    pause_at: int | None = None,
    report: Any = lambda values: None,
    **fields: Any,
) -> dict[str, Any]:
    """Returns the facts of one evaluation on dev, without clock times."""
    rates = {"learning_rate": [1e-3, 1e-2]} if name in ("sid", "pr") else {}
    plain = {"updates": UPDATES, "seeds": 2, "validate_every_updates": 2}
    spec = spec_of(name, **plain | rates | fields)
    facts = evaluate(
        spec,
        ToyEncoder(),
        toy_corpus(COUNTS),
        torch.device("cpu"),
        report,
        dev_only=True,
        work=work,
        pause_at=pause_at,
    )
    return {**facts, "seconds": None, "encoded_seconds": None}


@pytest.fixture
def count_updates(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Has one item for each update of a probe, or of a stack of probes."""
    made: list[int] = []
    for owner in (ProbeTrainer, _Heads):
        step: Any = owner.step

        def count(self: Any, *args: Any, step: Any = step) -> Any:
            made.append(1)
            return step(self, *args)

        monkeypatch.setattr(owner, "step", count)
    return made


@pytest.mark.parametrize("name", TRAINED)
def test_all_rungs_end_with_the_bits_of_a_full_evaluation(
    name: str, tmp_path: Path, count_updates: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speechft_ray.superb.selection.is_better", is_as_good)
    whole = evaluate_toy(name, None)
    in_one_go = len(count_updates)
    for pause_at in RUNGS:
        paused = evaluate_toy(name, tmp_path, pause_at)
        assert paused["pause_at"] == pause_at
        assert max(paused["best_update"]) <= pause_at
        if pause_at < 2:  # before the first validation of the full training
            assert set(paused["best_update"]) == {pause_at}
    assert evaluate_toy(name, tmp_path) == whole
    assert len(count_updates) == 2 * in_one_go


@pytest.mark.parametrize("name", ["sid", "sd"])
def test_a_rung_scores_the_best_validation_by_then(name: str, tmp_path: Path) -> None:
    """Its scores are those of a training that validates in the same places and ends there."""
    paused = evaluate_toy(name, tmp_path, 4)
    shorter = evaluate_toy(name, None, updates=4)
    assert paused["scores"] == shorter["scores"]
    assert paused["best_update"] == shorter["best_update"]


@pytest.mark.parametrize("name", ["sid", "sd"])
def test_a_rung_that_is_killed_goes_on(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of each rung, and after its last state but before its scores."""
    monkeypatch.setattr(saved_work, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(saved_work, "MOST_SECONDS", 0.0)
    monkeypatch.setattr(saved_work, "SAVE_SHARE", float("inf"))
    whole = evaluate_toy(name, None, validate_every_updates=1, patience=2)
    for pause_at in (3, 6):
        with pytest.raises(Killed):
            evaluate_toy(
                name,
                tmp_path,
                pause_at,
                die_at(COUNTS["train"] + COUNTS["dev"] + pause_at),
                validate_every_updates=1,
                patience=2,
            )
        first = evaluate_toy(name, tmp_path, pause_at, validate_every_updates=1, patience=2)
        again = evaluate_toy(name, tmp_path, pause_at, validate_every_updates=1, patience=2)
        assert first == again
    assert evaluate_toy(name, tmp_path, validate_every_updates=1, patience=2) == whole


@pytest.mark.parametrize("name", ["sid", "pr"])
@pytest.mark.parametrize("pause_at", [None, 3])
def test_a_probe_that_diverged_is_an_error_at_a_rung_as_well(
    name: str, pause_at: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three updates without effect are few of seven, but all until the rung."""

    def spoil(self: ToyEncoder, waves: Any) -> HiddenStates:
        encoded = encode(self, waves)
        return encoded._replace(states=tuple(states * torch.nan for states in encoded.states))

    encode = ToyEncoder.hidden_states
    monkeypatch.setattr(ToyEncoder, "hidden_states", spoil)
    with pytest.raises(UserError, match="diverged at the learning rate"):
        evaluate_toy(name, tmp_path, pause_at)


@pytest.mark.parametrize("name", ["sid", "sd"])
def test_training_ends_at_the_pause_at_the_latest(name: str, tmp_path: Path) -> None:
    fields = {"validate_every_updates": 1, "patience": 4}
    assert evaluate_toy(name, tmp_path, 2, **fields)["last_update"] == [2, 2]
    assert max(evaluate_toy(name, tmp_path, **fields)["last_update"]) > 2


def test_a_state_beyond_the_rung_is_not_used(tmp_path: Path) -> None:
    """Another search had taken the same evaluation further."""
    alone = evaluate_toy("sid", None, 2)
    evaluate_toy("sid", tmp_path, 5)
    assert evaluate_toy("sid", tmp_path, 2) == alone
    assert evaluate_toy("sid", tmp_path) == evaluate_toy("sid", None)


def test_a_task_without_updates_cannot_pause() -> None:
    with pytest.raises(ValueError, match="`qbe` makes no updates"):
        evaluate_toy("qbe", None, 2)
