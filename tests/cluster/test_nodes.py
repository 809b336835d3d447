"""Two nodes, with one GPU each as far as Ray knows: jobs spread or prefer one, another process
finds them, a lost node is replaced."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster as Nodes

from speechft_ray.cluster.affinity import select_node
from speechft_ray.cluster.connect import connect
from speechft_ray.cluster.executor import RayExecutor
from speechft_ray.core.records import Place
from speechft_ray.core.resources import ResourceRequest
from tests.cluster.ray_clusters import ROOT, STORE_BYTES, collect, eventually, ray_folder
from tests.cluster.worker_jobs import job, perform

__all__ = ["ray_folder"]  # fixture
SIZE: dict[str, Any] = {"num_cpus": 2, "num_gpus": 1, "object_store_memory": STORE_BYTES}
ONE_GPU = ResourceRequest(cpus=1, gpus=1)

OTHER_DRIVER = """
import sys
from speechft_ray.cluster.connect import connect
from speechft_ray.cluster.executor import RayExecutor
from speechft_ray.core.records import Place
from tests.cluster.worker_jobs import job, perform
from tests.cluster.ray_clusters import collect
cluster = connect("auto")
executor = RayExecutor(perform, Place(storage=sys.argv[1], encoder="none"), cluster=cluster)
executor.submit(job("succeed"))
outcome = collect(executor, 1)["evaluate-a"]
executor.stop()
print(cluster.nodes, cluster.gpus, outcome.ok)
"""


def place(storage: Path) -> Place:
    return Place(storage=str(storage), encoder="none", cache=str(storage / "cache"))


def spec_that_prefers(node_id: str, storage: Path) -> dict[str, Any]:
    """A spec with a corpus whose evaluations prefer this node."""
    ids = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    specs: Iterator[dict[str, Any]] = (
        {"corpus": {"name": f"corpus{number}"}} for number in range(100)
    )
    return next(
        spec
        for spec in specs
        if select_node(job("meet", spec=spec), place(storage), ids) == node_id
    )


@pytest.fixture(scope="module")
def nodes(ray_folder: Path) -> Iterator[Any]:
    quick = {
        "health_check_period_ms": 1000,
        "health_check_failure_threshold": 10,
        "health_check_initial_delay_ms": 0,
    }
    head = {**SIZE, "include_dashboard": False, "_system_config": quick}
    made = Nodes(initialize_head=True, head_node_args=head)
    made.add_node(**SIZE)
    made.wait_for_nodes()
    yield made
    made.shutdown()


@pytest.fixture
def executor(nodes: Any, tmp_path: Path) -> Iterator[RayExecutor]:
    cluster = connect(nodes.address)
    assert (cluster.nodes, cluster.gpus, cluster.local) == (2, 2, False)
    made = RayExecutor(perform, place(tmp_path), cluster=cluster)
    yield made
    made.stop()
    assert not ray.is_initialized()


def test_trials_and_evaluations_spread_over_the_nodes(executor: RayExecutor) -> None:
    for stage in ("finetune", "evaluate"):
        for name in "ab":
            executor.submit(
                job("meet", name=name, stage=stage, at=stage, count=2, resources=ONE_GPU)
            )
    ended = collect(executor, 4)
    for stage in ("finetune", "evaluate"):
        first, second = ended[f"{stage}-a"], ended[f"{stage}-b"]
        assert first.ok and second.ok, (first.traceback, second.traceback)
        assert first.facts["node"] != second.facts["node"]
        assert (
            first.facts["gpus"] == second.facts["gpus"] == [0] and first.facts["device"] == "auto"
        )


def test_evaluations_of_one_corpus_run_on_one_node_until_it_is_full(
    executor: RayExecutor, nodes: Any, tmp_path: Path
) -> None:
    assert eventually(
        lambda: ray.available_resources().get("CPU") == 4
    )  # the trials of other tests are gone
    ids = [node.node_id for node in nodes.list_all_nodes()]
    specs = {
        node: spec_that_prefers(node, tmp_path) for node in reversed(ids)
    }  # Ray by itself would fill the head first
    for node, spec in specs.items():
        for turn in range(2):
            executor.submit(job("meet", name=f"{node}-{turn}", at="room", count=4, spec=spec))
    ended = collect(executor, 4)
    assert {name: outcome.facts.get("node") for name, outcome in ended.items()} == {
        f"evaluate-{node}-{turn}": node for node in ids for turn in range(2)
    }
    for name in "abcd":  # four at once, of one corpus: only two find room on its node
        executor.submit(job("meet", name=name, at="full", count=4, spec=specs[ids[1]]))
    assert Counter(
        outcome.facts.get("node") for outcome in collect(executor, 4).values()
    ) == dict.fromkeys(ids, 2)


def test_another_process_finds_the_running_cluster(nodes: Any, tmp_path: Path) -> None:
    environment = os.environ | {"RAY_ADDRESS": nodes.address}
    command = [sys.executable, "-W", "error", "-c", OTHER_DRIVER, str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.stdout.strip() == "2 2.0 True", done.stderr


def test_jobs_of_a_lost_node_run_again_elsewhere(
    executor: RayExecutor, nodes: Any, tmp_path: Path
) -> None:
    """Last in this file: the node stays lost."""
    (worker,) = [node for node in nodes.list_all_nodes() if node != nodes.head_node]
    for name in "ab":
        executor.submit(
            job("meet", name=name, stage="finetune", at="tune", count=2, resources=ONE_GPU)
        )
    assert len(collect(executor, 2)) == 2  # both nodes have run a trial
    spec = spec_that_prefers(worker.node_id, tmp_path)
    for name in "ab":
        executor.submit(job("wait", name=name, resources=ONE_GPU, spec=spec))
    assert eventually(lambda: len(list(tmp_path.glob("beat-evaluate-?"))) == 2)
    nodes.remove_node(worker, allow_graceful=False)
    (tmp_path / "go").touch()
    ended = collect(executor, 2)
    assert all(outcome.ok for outcome in ended.values())
