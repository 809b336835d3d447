"""What every tracker promises: whatever is told twice is there once, and a killed writer is no
harm."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from speechft_ray.sweep.protocols import Curve, EncoderRow, SweepInfo, Tracker
from speechft_ray.tracking.background import BackgroundTracker
from speechft_ray.tracking.base import TRACKERS
from tests.tracking.storages import mlflow_storage, mlflow_template
from tests.tracking.views import View, champion_of, view_of

__all__ = ["mlflow_storage", "mlflow_template"]  # fixtures
Open = Callable[[Path], Tracker]
ROOT = Path(__file__).parents[2]
SWEEP = SweepInfo("sweep-key", "alpha", {"encoder": "tiny_hubert"})
POINTS = [(10, {"loss": 2.0, "dev": 40.0}), (20, {"loss": 1.0, "dev": 30.5})]
CURVE = Curve("tuned-key", "narrow seed=0", {"finetune": "narrow", "seed": 0}, POINTS)
METRICS = {"pr.per": 7.25, "dev.pr.per": 7.0, "score": 812.5}
ROW = EncoderRow(
    "merged-key", "linear alpha=0.25", {"alpha": 0.25, "method": "linear"}, METRICS, True
)

KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from speechft_ray.tracking.base import TRACKERS
from tests.contracts.test_trackers import CURVE, ROW, SWEEP
tracker = TRACKERS.get(sys.argv[1])(Path(sys.argv[2]))
tracker.start(SWEEP)
tracker.log_curve(CURVE._replace(points=CURVE.points[:1]))
tracker.log_encoder(ROW._replace(metrics={"pr.per": 7.25}, complete=False))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(params=[*TRACKERS.names(), "mlflow in background"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return str(request.param)


@pytest.fixture
def opened(kind: str) -> Open:
    """Opens the tracker as a driver does that starts."""
    name, _, background = kind.partition(" ")
    return lambda root: (
        BackgroundTracker(TRACKERS.get(name)(root)) if background else TRACKERS.get(name)(root)
    )


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


def tell_everything(
    tracker: Tracker, report: Path | None = None, weights: Path | None = None
) -> None:
    tracker.start(SWEEP)
    tracker.log_curve(CURVE)
    tracker.log_encoder(ROW)
    if weights is not None:
        tracker.register_model(ROW, weights)
    tracker.finish(report, [(0.25, 812.5), (0.25, 800.0), (1.0, 500.0)], "finished")


def expected(view: View) -> Mapping[str, Any]:
    """What must be there in the end, each thing once."""
    assert view.curves == {"tuned-key": {"loss": {10: 2.0, 20: 1.0}, "dev": {10: 40.0, 20: 30.5}}}
    assert {
        name: value for name, value in view.encoders["merged-key"].items() if name != "alpha"
    } == METRICS
    assert list(view.encoders) == ["merged-key"]
    assert view.ended == "finished"
    return view._asdict()


def test_told_once(opened: Open, root: Path, report: Path) -> None:
    tracker = opened(root)
    tell_everything(tracker, report)
    expected(view_of(root))
    assert "\n" not in tracker.how_to_open()


def test_told_again_by_the_same_and_by_another_run(opened: Open, root: Path, report: Path) -> None:
    tracker = opened(root)
    tell_everything(tracker, report)
    first = view_of(root)
    tell_everything(tracker, report)
    tell_everything(opened(root), report)
    assert view_of(root) == first


def test_the_champion_is_registered_once_and_can_change(
    opened: Open, root: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "merged"
    weights.mkdir()
    (weights / "encoder.safetensors").write_bytes(b"weights")
    for _ in range(2):
        tell_everything(opened(root), weights=weights)
    assert champion_of(root) == ("merged-key", 1)
    expected(view_of(root))
    other = opened(root)
    other.start(SWEEP)
    other.register_model(ROW._replace(key="better-key"), weights)
    other.finish(None, [], "finished")
    assert champion_of(root) == ("better-key", 2)


def test_things_become_complete_later(opened: Open, root: Path) -> None:
    tracker = opened(root)
    tracker.start(SWEEP)
    tracker.log_curve(CURVE._replace(points=POINTS[:1]))
    tracker.log_encoder(ROW._replace(metrics={"pr.per": 9.0, "dev.pr.per": 7.0}, complete=False))
    tracker.finish(None, [(0.25, 1.0)], "stopped")
    assert (
        view_of(root).ended == "stopped" and view_of(root).encoders["merged-key"]["pr.per"] == 9.0
    )
    tell_everything(opened(root))
    expected(view_of(root))


def test_a_killed_writer_leaves_nothing_double_or_open(kind: str, opened: Open, root: Path) -> None:
    if "background" in kind:
        pytest.skip("the same writer as without")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_WRITER, kind, str(root)], env=environment, timeout=120
    )
    assert killed.returncode == -9
    assert view_of(root).ended == "running"
    tell_everything(opened(root))
    expected(view_of(root))


def test_sweeps_do_not_mix(opened: Open, root: Path) -> None:
    """Two plans of one name share merged encoders, since these are named by what they are."""
    tell_everything(opened(root))
    other = opened(root)
    other.start(SWEEP._replace(key="other-key"))
    other.log_encoder(ROW._replace(metrics={"pr.per": 1.0}))
    other.finish(None, [], "failed")
    assert view_of(root, "other-key").encoders["merged-key"]["pr.per"] == 1.0
    assert view_of(root, "other-key").ended == "failed"
    expected(view_of(root))


def test_results_before_start_are_a_bug(opened: Open, root: Path) -> None:
    tracker = opened(root)
    with pytest.raises(RuntimeError, match="before `start`"):
        tracker.log_encoder(ROW)
        tracker.finish(None, [], "finished")
