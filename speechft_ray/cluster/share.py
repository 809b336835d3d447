"""Fits the resource request of a job to the nodes, so that no job waits for ever."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from speechft_ray.core.records import Place
from speechft_ray.core.resources import ResourceRequest

LOOK_EVERY_SECONDS = 5.0
"""How long a look at the nodes stays good: thousands of jobs are submitted at once, nodes come and
go in minutes."""


def fit_request(
    request: ResourceRequest, nodes: Sequence[Mapping[str, float]], device: str
) -> ResourceRequest:
    """Returns what a job really asks for, given the resources of each node (Ray's names: ``CPU``,
    ``GPU``, ``memory``).

    Without any GPU in the cluster, or with ``device`` ``cpu``, the job runs on the CPU. CPUs and
    memory are at most those of the best node that has the GPUs. A cluster without any CPU yet is
    still starting, and is waited for with the whole request.
    """
    gpus = (
        0.0
        if device == "cpu"
        else min(request.gpus, max((node.get("GPU", 0.0) for node in nodes), default=0.0))
    )
    if not any(node.get("CPU", 0.0) for node in nodes):
        return request.model_copy(update={"gpus": 0.0 if device == "cpu" else request.gpus})
    able = [node for node in nodes if node.get("GPU", 0.0) >= gpus]
    cpus = min(request.cpus, max(node.get("CPU", 0.0) for node in able))
    memory = min(request.memory_bytes, int(max(node.get("memory", 0.0) for node in able)))
    return ResourceRequest(cpus=cpus, gpus=gpus, memory_bytes=memory)


def slots(share: ResourceRequest, nodes: Sequence[Mapping[str, float]]) -> int:
    """Returns how many jobs with this share run at once on these nodes; at least 1, since one would
    be waited for."""
    needs = {name: amount for name, amount in bundle(share).items() if name in ("CPU", "GPU")}
    held = [
        min(int(node.get(name, 0.0) / amount + 1e-9) for name, amount in needs.items())
        for node in nodes
        if needs
    ]
    return max(1, sum(held))


def eligible_nodes(share: ResourceRequest, nodes: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Returns the ids of the nodes that could run a job with this share, were they idle; sorted."""
    needs = bundle(share)
    return sorted(
        name
        for name, node in nodes.items()
        if all(node.get(key, 0.0) >= needs[key] for key in needs)
    )


def task_options(share: ResourceRequest) -> dict[str, Any]:
    """Returns the share as options of a Ray task."""
    memory = {"memory": share.memory_bytes} if share.memory_bytes else {}
    return {"num_cpus": share.cpus, "num_gpus": share.gpus, **memory}


def bundle(share: ResourceRequest) -> dict[str, float]:
    """Returns the share as one bundle of a placement group, which must not be empty."""
    named = {"CPU": share.cpus, "GPU": share.gpus, "memory": float(share.memory_bytes)}
    return {name: amount for name, amount in named.items() if amount} or {"CPU": 0.01}


class Shares:
    """Fits requests to the nodes that the cluster has now."""

    def __init__(self, place: Place) -> None:
        self._device = place.device
        self._nodes: dict[str, Mapping[str, float]] = {}
        self._looked_at = float("-inf")

    def of(self, request: ResourceRequest) -> ResourceRequest:
        """Returns what this request gets."""
        self._refresh()
        return fit_request(request, list(self._nodes.values()), self._device)

    def slots(self, request: ResourceRequest) -> int:
        """Returns how many such requests the nodes hold together; 1 while there is no node."""
        return slots(self.of(request), list(self._nodes.values()))

    def eligible_nodes(self, share: ResourceRequest) -> list[str]:
        """Returns the ids of the nodes that could run a job with this share, were they idle;
        sorted."""
        self._refresh()
        return eligible_nodes(share, self._nodes)

    def _refresh(self) -> None:
        if time.monotonic() - self._looked_at > LOOK_EVERY_SECONDS:
            self._nodes = {
                node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]
            }
            self._looked_at = time.monotonic()
