"""The contract of every tracker: a repeated call adds nothing, and a killed writer does no harm."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from speechft_ray.sweep.protocols import Model, SweepEnd, Tracker
from speechft_ray.tracking.background import BackgroundTracker
from speechft_ray.tracking.base import TRACKERS
from tests.tracking.records import CURVE, METRICS, POINTS, PROBE_POINTS, PROBES, ROW, SWEEP
from tests.tracking.storages import mlflow_storage, mlflow_template
from tests.tracking.views import View, read_registered_model, view_of

__all__ = ["mlflow_storage", "mlflow_template"]  # fixtures
Open = Callable[[Path], Tracker]
ROOT = Path(__file__).parents[2]

KILLED_WRITER = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from speechft_ray.tracking.base import TRACKERS
from tests.tracking.records import CURVE, PROBES, ROW, SWEEP
tracker = TRACKERS.get(sys.argv[1]).open(Path(sys.argv[2]), SWEEP.name, None)
tracker.start(SWEEP)
tracker.log_curve(CURVE._replace(points=CURVE.points[:1], state="running"))
tracker.log_curve(PROBES)
tracker.log_encoder(replace(ROW, test={"pr.per": 7.25}, dev={}, extra={}, complete=False))
os.kill(os.getpid(), signal.SIGKILL)
"""


# Opening a run of W&B takes seconds: tests/tracking/test_wandb.py checks all in one.
NAMES = [name for name in TRACKERS.names() if name != "wandb"]


@pytest.fixture(params=[*NAMES, "mlflow in background"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return str(request.param)


@pytest.fixture
def open_tracker(kind: str) -> Open:
    """Opens the tracker as a driver does that starts."""
    name, _, background = kind.partition(" ")

    def open_at(root: Path) -> Tracker:
        tracker = TRACKERS.get(name).open(root, SWEEP.name, None)
        return BackgroundTracker(tracker) if background else tracker

    return open_at


@pytest.fixture
def root(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A storage folder; MLflow's database in it is a copy, since making one takes ten seconds."""
    return request.getfixturevalue("mlflow_storage") if kind.startswith("mlflow") else tmp_path


@pytest.fixture
def report(tmp_path: Path) -> Path:
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / "index.html").write_text("a report")
    return folder


def log_everything(
    tracker: Tracker, report: Path | None = None, weights: Path | None = None
) -> None:
    tracker.start(SWEEP)
    tracker.log_curve(CURVE)
    tracker.log_encoder(ROW)
    if weights is not None:
        tracker.register_model(ROW, make_model(weights))
    tracker.finish(SweepEnd("finished", report, {"linear": [(0.25, 806.25), (1.0, 500.0)]}))


def make_model(weights: Path) -> Model:
    """What a sweep registers; the layout of transformers is a copy here."""
    return Model(weights, "a card", lambda folder: shutil.copytree(weights, folder))


def check_view(view: View) -> Mapping[str, Any]:
    """Checks that everything is there once."""
    assert view.curves == {
        "tuned-key": {"train/loss": {10: 2.0, 20: 1.0}, "dev/accuracy": {10: 40.0, 20: 30.5}},
        "merged-key": {"probe/loss_pr": {5: 3.0, 10: 2.5}, "probe/dev_pr.per": {10: 30.0}},
    }
    assert {
        name: value for name, value in view.encoders["merged-key"].items() if name != "alpha"
    } == METRICS
    assert list(view.encoders) == ["merged-key"]
    assert view.ended == "finished"
    return view._asdict()


def test_everything_is_logged(open_tracker: Open, root: Path, report: Path) -> None:
    tracker = open_tracker(root)
    log_everything(tracker, report)
    check_view(view_of(root))
    assert "\n" not in tracker.how_to_open()


def test_repeated_calls_by_the_same_and_by_another_run_change_nothing(
    open_tracker: Open, root: Path, report: Path
) -> None:
    tracker = open_tracker(root)
    log_everything(tracker, report)
    first = view_of(root)
    log_everything(tracker, report)
    log_everything(open_tracker(root), report)
    assert view_of(root) == first


def test_the_selected_encoder_is_registered_once_and_can_change(
    open_tracker: Open, root: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "merged"
    weights.mkdir()
    (weights / "encoder.safetensors").write_bytes(b"weights")
    for _ in range(2):
        log_everything(open_tracker(root), weights=weights)
    assert read_registered_model(root) == ("merged-key", 1)
    check_view(view_of(root))
    other = open_tracker(root)
    other.start(SWEEP)
    other.register_model(replace(ROW, key="better-key"), make_model(weights))
    other.finish(SweepEnd("finished"))
    assert read_registered_model(root) == ("better-key", 2)


def test_rows_and_curves_become_complete_later(open_tracker: Open, root: Path) -> None:
    tracker = open_tracker(root)
    tracker.start(SWEEP)
    tracker.log_curve(CURVE._replace(points=POINTS[:1], state="running"))
    tracker.log_encoder(replace(ROW, test={"pr.per": 9.0}, complete=False))
    tracker.finish(SweepEnd("stopped"))
    assert (
        view_of(root).ended == "stopped" and view_of(root).encoders["merged-key"]["pr.per"] == 9.0
    )
    log_everything(open_tracker(root))
    check_view(view_of(root))


def test_points_come_while_a_run_goes_on(open_tracker: Open, root: Path) -> None:
    """And once each, although a batch is repeated."""
    tracker = open_tracker(root)
    tracker.start(SWEEP)
    for points in (POINTS[:1], POINTS[:1], POINTS[1:]):
        tracker.log_curve(CURVE._replace(points=points, state="running"))
    for points in (PROBE_POINTS[:1], PROBE_POINTS):
        tracker.log_curve(PROBES._replace(points=points))
    if isinstance(tracker, BackgroundTracker):
        tracker._wait()
    seen = view_of(root)
    assert seen.ended == "running" and not seen.failures
    log_everything(tracker)
    assert view_of(root).curves == seen.curves
    check_view(view_of(root))


def test_a_run_that_failed_says_why_until_it_ends_well(open_tracker: Open, root: Path) -> None:
    tracker = open_tracker(root)
    tracker.start(SWEEP)
    tracker.log_curve(CURVE._replace(points=POINTS[:1], state="running"))
    tracker.log_curve(CURVE._replace(points=[], state="failed", error="no memory"))
    tracker.log_curve(PROBES._replace(points=[], state="failed", error="no label"))
    tracker.finish(SweepEnd("failed"))
    assert view_of(root).failures == {"tuned-key": "no memory", "merged-key": "no label"}
    log_everything(open_tracker(root))
    view = view_of(root)
    check_view(view)
    assert not view.failures


def test_a_killed_writer_leaves_nothing_double_or_open(
    kind: str, open_tracker: Open, root: Path
) -> None:
    if "background" in kind:
        pytest.skip("the same writer as without")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_WRITER, kind, str(root)], env=environment, timeout=900
    )
    assert killed.returncode == -9
    assert view_of(root).ended == "running"
    log_everything(open_tracker(root))
    check_view(view_of(root))


def test_sweeps_do_not_mix(open_tracker: Open, root: Path) -> None:
    """Two plans of one name share merged encoders, since these are named by what they are."""
    log_everything(open_tracker(root))
    other = open_tracker(root)
    other.start(SWEEP._replace(key="other-key"))
    other.log_encoder(replace(ROW, test={"pr.per": 1.0}))
    other.finish(SweepEnd("failed"))
    assert view_of(root, "other-key").encoders["merged-key"]["pr.per"] == 1.0
    assert view_of(root, "other-key").ended == "failed"
    check_view(view_of(root))


def test_results_before_start_are_a_bug(open_tracker: Open, root: Path) -> None:
    tracker = open_tracker(root)
    with pytest.raises(RuntimeError, match="before `start`"):
        tracker.log_encoder(ROW)
        tracker.finish(SweepEnd("finished"))
