"""Learning curves while a sweep runs: in the trackers before a run ends, at most one batch of a run
at a time, and each point once although the driver is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from speechft_ray.core.records import Job
from speechft_ray.sweep import curves
from speechft_ray.sweep.curves import LiveCurves
from speechft_ray.sweep.plan import make_plan
from speechft_ray.sweep.protocols import Curve
from tests.cluster.ray_clusters import ROOT, eventually
from tests.sweep.fakes import inputs, sweep
from tests.sweep.live_driver import UPDATES, WAITS_AT, main, make_values
from tests.tracking.storages import mlflow_storage, mlflow_template
from tests.tracking.views import query, view_of

__all__ = ["mlflow_storage", "mlflow_template"]  # fixtures


def test_points_of_a_run_wait_for_its_time() -> None:
    now = 100.0
    live = LiveCurves(lambda: now)
    one, other = (Curve(key, key, {}, [], state="running") for key in ("one", "other"))

    def take() -> dict[str, Sequence[object]]:
        return {curve.key: curve.points for curve in live.take_due()}

    live.add(one, [(1, {"loss": 3.0})])
    assert take() == {"one": [(1, {"loss": 3.0})]} and take() == {}
    live.add(one, [(2, {"loss": 2.0})])
    live.add(one, [(3, {"loss": 1.0})])
    live.add(other, [(1, {"loss": 9.0})])
    assert take() == {"other": [(1, {"loss": 9.0})]}
    now += curves.LIVE_SECONDS
    assert take() == {"one": [(2, {"loss": 2.0}), (3, {"loss": 1.0})]}
    live.add(one, [(4, {"loss": 0.5})])
    live.end("one")
    live.add(one, [(5, {"loss": 0.4})])
    now += curves.LIVE_SECONDS
    assert take() == {}


def test_a_driver_that_is_killed_leaves_one_run_per_key_and_one_point_per_step(
    mlflow_storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(curves, "LIVE_SECONDS", 0.0)
    monkeypatch.setattr("speechft_ray.sweep.local.SHOW_EVERY_SECONDS", 0.0)
    plan, database = make_plan(sweep(), inputs()), mlflow_storage / "mlflow.db"
    first, *_ = tunings = plan.of_stage("finetune")
    live = (
        "select m.step, r.status from metrics m join runs r using (run_uuid) join tags k "
        "using (run_uuid) where k.key = 'speechft.key' and k.value = ? and m.key = 'train/loss' "
        "order by m.step"
    )

    # Before the run ends, its points are in MLflow, and its run is open.
    command = [sys.executable, "-m", "tests.sweep.live_driver", str(mlflow_storage)]
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}) as driver:
        running = [(update, "RUNNING") for update in range(1, WAITS_AT + 1)]
        assert eventually(lambda: query(database, live, first.fingerprint) == running)
        assert driver.poll() is None
        driver.send_signal(signal.SIGKILL)

    # The same command again.
    (mlflow_storage / "go").touch()
    main(mlflow_storage)
    seen = view_of(mlflow_storage, plan.fingerprint)  # fails where a key has two runs
    assert seen.ended == "finished" and not seen.failures
    for job in tunings:
        assert seen.curves[job.fingerprint] == _transpose(job)
    for row in plan.rows:
        curve = seen.curves[row.key]
        for name in ("pr", "sid"):
            assert curve[f"probe/loss_{name}"] == {
                update: 2.0 / update for update in range(1, UPDATES + 1)
            }
        assert set(curve) == {"probe/loss_pr", "probe/loss_sid", "probe/dev_pr.per"}


def _transpose(job: Job) -> dict[str, dict[int, float]]:
    names = {
        "loss": "train/loss",
        "learning_rate": "train/lr",
        "distance": "train/distance",
        "dev": "dev/finetune.accuracy",
    }
    by_name: dict[str, dict[int, float]] = {}
    for update in range(1, UPDATES + 1):
        for name, value in make_values(job, update).items():
            by_name.setdefault(names[name], {})[update] = value
    return by_name
