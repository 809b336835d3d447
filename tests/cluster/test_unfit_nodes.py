"""Nodes that see another storage than the driver: jobs go elsewhere, or fail, and none waits for
ever."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from speechft_ray.cluster import unfit_nodes as module
from speechft_ray.cluster.connect import Cluster
from speechft_ray.cluster.executor import RayExecutor
from speechft_ray.cluster.unfit_nodes import FORGET_SECONDS, UnfitNodes
from speechft_ray.core.marker import MARKER
from speechft_ray.core.records import Limits, Place, Stage
from tests.cluster.ray_clusters import collect, local_cluster, ray_folder
from tests.cluster.worker_jobs import job, perform

__all__ = ["local_cluster", "ray_folder"]  # fixtures
HEAD: dict[str, Any] = {"NodeID": "head", "Alive": True, "Resources": {}, "Labels": {}}


def add_head(nodes: Callable[[], list[dict[str, Any]]]) -> Callable[[], list[dict[str, Any]]]:
    """Returns the nodes with one more that runs no job, as a head without CPUs."""
    return lambda: [*nodes(), HEAD]


@pytest.mark.parametrize("stage", ["evaluate", "finetune"])
def test_jobs_that_no_node_can_run_fail_until_one_is_repaired(
    local_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: Stage
) -> None:
    """The first and a later one; a head without CPUs is no node that could run them."""
    monkeypatch.setattr(ray, "nodes", add_head(ray.nodes))
    notes: list[str] = []
    place = Place(storage=str(tmp_path), storage_id="ours", encoder="none")
    executor = RayExecutor(perform, place, note=notes.append)
    for name in "ab":
        executor.submit(job("succeed", name=name, stage=stage))
        (outcome,) = collect(executor, 1, seconds=120).values()
        assert "no node that has what this job asks for" in str(outcome.error)
        assert f"sees no {MARKER} of the driver's folder" in str(outcome.error)
        assert outcome.unfit_node is None
    assert len([note for note in notes if "Until then" in note]) == 1
    (tmp_path / MARKER).write_text(json.dumps({"id": "ours"}))
    monkeypatch.setattr(module, "FORGET_SECONDS", 0.0)
    executor.submit(job("succeed", name="c", stage=stage))
    (outcome,) = collect(executor, 1, seconds=120).values()
    assert outcome.ok, outcome.error
    executor.stop()


def test_after_memory_ran_out_a_job_asks_for_no_cpus_of_an_unfit_node(
    local_cluster: Cluster, tmp_path: Path
) -> None:
    executor = RayExecutor(perform, Place(storage=str(tmp_path), encoder="none"))
    executor._shares._nodes = {"small": {"CPU": 4.0}, "large": {"CPU": 16.0}}
    executor._shares._looked_at = float("inf")
    one = job("succeed")
    for _ in range(Limits().retries):
        executor._losses.count(one.fingerprint, out_of_memory=True)
    assert executor._choose_share(one).cpus == 16
    executor._unfit.add("large", "node large sees another folder")
    assert executor._choose_share(one).cpus == 1
    executor.stop()


def test_a_node_is_unfit_for_a_while_and_named_once() -> None:
    now = 100.0
    nodes = UnfitNodes(lambda: now)
    assert nodes.add("a", "a sees another folder") and nodes.add("b", "b sees another folder")
    assert not nodes.add("a", "a sees another folder")
    assert nodes.list() == {"a", "b"}
    assert "a sees another folder" in str(nodes.explain(["b", "a"]))
    assert nodes.explain(["a", "c"]) is None
    assert nodes.explain([]) is None, "a node that is waited for may be fit"
    now += FORGET_SECONDS
    assert nodes.list() == set() and nodes.explain(["a"]) is None
    assert not nodes.add("a", "a sees another folder")
    assert nodes.list() == {"a"}
