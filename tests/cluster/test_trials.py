"""What the driver knows of trials that Tune has not started."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from speechft_ray.cluster import trials as module
from speechft_ray.cluster.losses import Losses
from speechft_ray.cluster.trials import Trials
from speechft_ray.core.records import Place
from tests.cluster.worker_jobs import job, perform


class Progress:
    """A progress actor that notes which jobs are removed from it."""

    def __init__(self) -> None:
        self.removed: list[str] = []
        self.remove = SimpleNamespace(remote=self.removed.append)


def make_trials(storage: Path, progress: Progress) -> Trials:
    unused: Any = None
    place = Place(storage=str(storage), encoder="unused")
    return Trials(perform, place, progress, unused, Losses(0), lambda outcome: None)


def test_evaluations_wait_until_every_trial_has_its_resources(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    states: list[str] = []

    def list_groups() -> dict[int, dict[str, str]]:
        return {number: {"state": state} for number, state in enumerate(states)}

    monkeypatch.setattr(module, "placement_group_table", list_groups)
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.0)
    trials = make_trials(tmp_path, Progress())
    assert trials.have_places()
    one, other = job("wait", "a", stage="finetune"), job("wait", "b", stage="finetune")
    trials._jobs = {one.fingerprint: one, other.fingerprint: other}
    assert not trials.have_places()
    states[:] = ["CREATED", "PENDING", "REMOVED"]
    assert not trials.have_places()
    states[:] = ["CREATED", "CREATED", "REMOVED"]
    assert trials.have_places()
    states[:] = []
    for fingerprint in trials._jobs:
        trials._note_start(fingerprint)
    assert trials.have_places() and not trials.are_lost()
    trials._note_loss(one.fingerprint)
    assert trials.are_lost() and not trials.have_places()
    states[:] = ["CREATED", "CREATED"]
    assert trials.have_places()  # its node has kept them
    trials._note_start(one.fingerprint)
    assert not trials.are_lost()


def test_a_trial_that_moves_to_another_node_counts_as_lost(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trials = make_trials(tmp_path, Progress())
    monkeypatch.setattr(trials, "_config", lambda job: {})
    monkeypatch.setattr(trials, "_run", lambda: None)
    one = job("wait", "a", stage="finetune")
    trials.submit(one)
    assert not trials.are_lost()
    trials._note_start(one.fingerprint)
    trials.submit(one)
    assert trials.are_lost()
    trials._note_start(one.fingerprint)
    assert not trials.are_lost()


def test_a_trial_that_was_lost_shows_no_progress_while_it_waits(tmp_path: Path) -> None:
    progress = Progress()
    trials = make_trials(tmp_path, progress)
    one = job("wait", "a", stage="finetune")
    trials._note_start(one.fingerprint)
    assert progress.removed == []
    trials._note_loss(one.fingerprint)
    assert progress.removed == [one.fingerprint]
