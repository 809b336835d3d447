"""Nodes that are about to be taken away, on real Ray."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private.worker import global_worker
from ray.core.generated import autoscaler_pb2

from speechft_ray.cluster.connect import connect
from speechft_ray.cluster.executor import RayExecutor
from speechft_ray.core.records import Place, Stage
from speechft_ray.core.resources import ResourceRequest
from tests.cluster.ray_clusters import collect, eventually, ray_folder
from tests.cluster.test_nodes import SIZE, nodes
from tests.cluster.worker_jobs import job, perform

__all__ = ["nodes", "ray_folder"]  # fixtures


@pytest.fixture
def executor(nodes: Any, tmp_path: Path) -> Iterator[RayExecutor]:
    cluster = connect(nodes.address)
    made = RayExecutor(perform, Place(storage=str(tmp_path), encoder="none"), cluster=cluster)
    yield made
    made.stop()


def is_alive(node: Any) -> bool:
    return any(item["Alive"] and item["NodeID"] == node.node_id for item in ray.nodes())


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["evaluate", "finetune"])
def test_jobs_of_a_node_that_drains_save_at_once_and_go_on_elsewhere(
    executor: RayExecutor, nodes: Any, tmp_path: Path, stage: Stage
) -> None:
    """As a spot machine drains that is taken away in ten minutes."""
    only = ResourceRequest(cpus=1, labels={"speechft-test": stage})
    first = nodes.add_node(**SIZE, labels=only.labels)
    assert eventually(lambda: is_alive(first))
    notes: list[str] = []
    executor._note = notes.append
    executor.submit(job("save", stage=stage, resources=only))
    assert eventually((tmp_path / "lives").exists)
    deadline = int(1000 * (time.time() + 600))
    preempted = autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
    gcs = global_worker.gcs_client
    assert gcs.drain_node(first.node_id, preempted, "test", deadline)[0]
    second = nodes.add_node(**SIZE, labels=only.labels)

    def has_moved() -> bool:
        executor.progress()
        assert executor.outcomes(0.1) == []
        return len((tmp_path / "lives").read_text().splitlines()) == 2

    assert eventually(has_moved)
    (tmp_path / "go").touch()
    (outcome,) = collect(executor, 1).values()
    assert outcome.ok, outcome.error
    lives = [line.split() for line in (tmp_path / "lives").read_text().splitlines()]
    last = (tmp_path / "last").read_text()
    assert lives == [[first.node_id, "0"], [second.node_id, last]]
    assert notes == [
        f"Node {first.node_id} will be taken away: its jobs save their state and move."
    ]
