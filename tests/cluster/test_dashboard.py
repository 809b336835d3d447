"""What Ray's dashboard and its metrics show of a sweep: its jobs, by telling names."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import ray
from ray.util.state import list_actors, list_tasks

from speechft_ray.cluster import connect as connecting
from speechft_ray.cluster.connect import connect
from speechft_ray.cluster.executor import RayExecutor
from speechft_ray.core.records import Outcome, Place
from speechft_ray.sweep.status_file import STATES, Best, SweepStatus, now
from tests.cluster.ray_clusters import ROOT, STORE_BYTES, ray_folder
from tests.cluster.worker_jobs import job, perform

__all__ = ["ray_folder"]  # fixture

MONITORING = ROOT / "launch" / "monitoring"
WAIT_SECONDS = 300.0
STATUS = SweepStatus(
    sweep="alpha",
    fingerprint="x",
    percent=40.0,
    jobs={"evaluate": dict.fromkeys(STATES, 1)},
    seconds_left=60.0,
    best=Best(name="a=0.25", dev_score=900.0, test_score=890.0),
    failures=(),
    updated_at=now(),
)


class Shown(NamedTuple):
    """What a cluster shows of a run."""

    tasks: list[str]
    actors: list[str]
    metrics: set[str]


@pytest.fixture(scope="module")
def shown(ray_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """Two fine-tuning runs and twelve evaluations, one of which fails, on a cluster with a
    dashboard."""
    storage = tmp_path_factory.mktemp("storage")
    packages = ("aiohttp",)  # it is there: the dashboard starts
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connecting, "DASHBOARD_PACKAGES", packages)
        cluster = connect("local", cpus=2, store_bytes=STORE_BYTES)
    executor = RayExecutor(perform, Place(storage=str(storage), encoder="none"), cluster=cluster)
    try:
        for name in "ab":
            executor.submit(job("succeed", name=name, stage="finetune"))
        for number in range(12):
            executor.submit(job("score" if number else "divide", name=str(number)))
        ended: list[Outcome] = []
        while len(ended) < 14:
            ended += executor.outcomes(0.1)
            executor.progress()
        assert sum(outcome.ok for outcome in ended) == 13
        metrics = _wait_for_metrics(executor)
        tasks = list_tasks(address=cluster.dashboard, limit=1000)
        actors = list_actors(address=cluster.dashboard, detail=True)
        yield Shown([task.name for task in tasks], [actor.repr_name for actor in actors], metrics)
    finally:
        executor.stop()


def _wait_for_metrics(executor: RayExecutor) -> set[str]:
    """Returns the names of the metrics of this package on the metrics port, once all that the board
    shows are there."""
    (node,) = ray.nodes()
    address = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
    deadline = time.monotonic() + WAIT_SECONDS
    names: set[str] = set()
    while not list_board_metrics() <= names and time.monotonic() < deadline:
        executor.show_status(STATUS)
        with urllib.request.urlopen(address, timeout=60) as answer:
            text = answer.read().decode()
        names |= set(re.findall(r"^(ray_speechft_\w+)\{", text, re.MULTILINE))
        time.sleep(1.0)
    return names


def list_board_metrics() -> set[str]:
    """Returns the names of the metrics that the queries of the board read."""
    board: Any = json.loads((MONITORING / "grafana_board.json").read_text(encoding="utf-8"))
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    queries += [item["query"]["query"] for item in board["templating"]["list"][1:]]
    return set(re.findall(r"ray_\w+", " ".join(queries)))


@pytest.mark.slow
def test_nine_in_ten_of_what_the_dashboard_shows_are_jobs_by_name(shown: Shown) -> None:
    names = [*shown.tasks, *shown.actors]
    telling = [name for name in names if re.match(r"(finetune|evaluate) \w+", name)]
    assert len(telling) >= 0.9 * len(names), names
    assert sorted(shown.tasks) == sorted(f"evaluate {number}" for number in range(12))
    # Beside the trials there is one actor, with the progress of all jobs.
    assert sorted(shown.actors) == ["", "finetune a", "finetune b"]


@pytest.mark.slow
def test_every_metric_of_the_board_is_exposed(shown: Shown) -> None:
    assert list_board_metrics() <= shown.metrics, list_board_metrics() - shown.metrics


@pytest.mark.slow
def test_the_documentation_lists_every_metric(shown: Shown) -> None:
    text = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(ray_speechft_\w+)", text)) == shown.metrics


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian: prometheus)")
def test_prometheus_takes_its_configuration() -> None:
    command = ["promtool", "check", "config", str(MONITORING / "prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
