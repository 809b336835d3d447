"""Two nodes, with one GPU each as far as Ray knows: jobs spread, another process finds them, a lost node is replaced."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster as Nodes

from speechft_ray.cluster.connect import connect
from speechft_ray.cluster.executor import RayExecutor
from speechft_ray.core.records import Place
from speechft_ray.core.resources import ResourceRequest
from tests.cluster.performs import job, perform
from tests.cluster.rays import ROOT, STORE_BYTES, collect, eventually, ray_world

__all__ = ["ray_world"]  # fixture
ONE_GPU = ResourceRequest(cpus=1, gpus=1)

OTHER_DRIVER = """
import sys
from speechft_ray.cluster.connect import connect
from speechft_ray.cluster.executor import RayExecutor
from speechft_ray.core.records import Place
from tests.cluster.performs import job, perform
from tests.cluster.rays import collect
cluster = connect("auto")
executor = RayExecutor(perform, Place(storage=sys.argv[1], encoder="none"), cluster=cluster)
executor.submit(job("succeed"))
outcome = collect(executor, 1)["evaluate-a"]
executor.stop()
print(cluster.nodes, cluster.gpus, outcome.ok)
"""


@pytest.fixture(scope="module")
def nodes(ray_world: Path) -> Iterator[Any]:
    quick = {"health_check_period_ms": 1000, "health_check_failure_threshold": 3, "health_check_initial_delay_ms": 0}
    size = {"num_cpus": 2, "num_gpus": 1, "object_store_memory": STORE_BYTES}
    head = {**size, "include_dashboard": False, "_system_config": quick}
    made = Nodes(initialize_head=True, head_node_args=head)
    made.add_node(**size)
    made.wait_for_nodes()
    yield made
    made.shutdown()


@pytest.fixture
def executor(nodes: Any, tmp_path: Path) -> Iterator[RayExecutor]:
    cluster = connect(nodes.address)
    assert (cluster.nodes, cluster.gpus, cluster.local) == (2, 2, False)
    made = RayExecutor(perform, Place(storage=str(tmp_path), encoder="none"), cluster=cluster)
    yield made
    made.stop()
    assert not ray.is_initialized()


def test_trials_and_evaluations_spread_over_the_nodes(executor: RayExecutor) -> None:
    for stage in ("finetune", "evaluate"):
        for name in "ab":
            executor.submit(job("meet", name=name, stage=stage, at=stage, count=2, resources=ONE_GPU))
    ended = collect(executor, 4)
    for stage in ("finetune", "evaluate"):
        first, second = ended[f"{stage}-a"], ended[f"{stage}-b"]
        assert first.ok and second.ok, (first.traceback, second.traceback)
        assert first.facts["node"] != second.facts["node"]
        assert first.facts["gpus"] == second.facts["gpus"] == [0] and first.facts["device"] == "auto"


def test_another_process_finds_the_running_cluster(nodes: Any, tmp_path: Path) -> None:
    environment = os.environ | {"RAY_ADDRESS": nodes.address}
    command = [sys.executable, "-W", "error", "-c", OTHER_DRIVER, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "2 2.0 True", done.stderr


def test_jobs_of_a_lost_node_run_again_elsewhere(executor: RayExecutor, nodes: Any, tmp_path: Path) -> None:
    """Last in this file: the node stays lost."""
    (worker,) = [node for node in nodes.list_all_nodes() if node != nodes.head_node]
    for name in "ab":
        executor.submit(job("meet", name=name, stage="finetune", at="tune", count=2, resources=ONE_GPU))
    assert len(collect(executor, 2)) == 2  # both nodes have run a trial
    executor.submit(job("wait", name="a", resources=ONE_GPU))
    executor.submit(job("wait", name="b", resources=ONE_GPU))
    assert eventually(lambda: len(list(tmp_path.glob("beat-evaluate-?"))) == 2)
    nodes.remove_node(worker, allow_graceful=False)
    (tmp_path / "go").touch()
    ended = collect(executor, 2)
    assert all(outcome.ok for outcome in ended.values())
