"""The trackers of a sweep: which ones ``--track`` opens, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechft_ray.cli import main
from speechft_ray.commands import trackers
from speechft_ray.commands.trackers import DEFAULT_TRACKERS, open_trackers, parse_trackers
from speechft_ray.core.errors import UserError
from speechft_ray.core.store import Store
from speechft_ray.tracking.background import BackgroundTracker
from speechft_ray.tracking.base import TRACKERS, TrackerKind
from speechft_ray.tracking.jsonl import JsonlTracker
from tests.sweep.fakes import sweep


def test_the_trackers_of_a_sweep_without_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert parse_trackers(None, None) == DEFAULT_TRACKERS
    mlflow, log = open_trackers(sweep(), Store(tmp_path), None)
    assert isinstance(mlflow, BackgroundTracker) and str(tmp_path) in mlflow.how_to_open()
    assert f"{tmp_path}/log/small" in log.how_to_open()


def test_a_new_tracker_is_a_name_of_the_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = TrackerKind(lambda storage, name, uri: JsonlTracker(storage / name), blocks=False)
    monkeypatch.setitem(TRACKERS._parts, "my_log", kind)
    names = parse_trackers("my_log, jsonl,my_log", None)
    assert names == ("my_log", "jsonl")
    own, log = open_trackers(sweep(), Store(tmp_path), None, names)
    assert f"{tmp_path}/small" in own.how_to_open() and "log/small" in log.how_to_open()
    assert open_trackers(sweep(), Store(tmp_path), None, parse_trackers("none", None)) == []


@pytest.mark.parametrize(
    ("text", "uri", "sentence"),
    [
        ("mlfow", None, r"unknown tracker `mlfow`. Did you mean `mlflow`\? Allowed: jsonl, mlflow"),
        ("", None, "must be names with commas between them"),
        ("none,mlflow", None, "or none alone"),
        ("jsonl", "http://here", "`--track jsonl` leaves mlflow out: add it to --track"),
        ("none", "http://here", "`--track none` leaves mlflow out"),
    ],
)
def test_what_is_refused(text: str, uri: str | None, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        parse_trackers(text, uri)


def test_a_tracker_that_is_not_installed_is_said_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = TRACKERS.get("jsonl")._replace(package="wandb")
    monkeypatch.setitem(TRACKERS._parts, "wandb", kind)
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--track", "mlflow,wandb"]) == 2 and list(tmp_path.iterdir()) == []
    assert (
        "the tracker `wandb` needs the Python package `wandb`, which is not installed: pip install "
        "'speechft_ray[wandb]', or leave it out of --track." in capsys.readouterr().err
    )
