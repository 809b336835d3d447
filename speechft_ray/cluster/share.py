"""Fits the resource request of a job to the nodes, so that no job waits for ever."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from speechft_ray.core.errors import UserError
from speechft_ray.core.records import Place, Stage
from speechft_ray.core.resources import ResourceRequest

LOOK_EVERY_SECONDS = 5.0
"""How long a look at the nodes stays good: thousands of jobs are submitted at once, nodes come and
go in minutes."""


DEFAULT_GPU_BYTES = 16 << 30
"""Memory of a GPU whose kind Ray does not tell."""

GPU_GIGABYTES: Mapping[str, int] = {
    "K80": 12,
    "P4": 8,
    "P100": 16,
    "V100": 16,
    "T4": 16,
    "A10G": 24,
    "L4": 24,
    "L40S": 48,
    "A100": 40,
    "A100-40G": 40,
    "A100-80G": 80,
    "H100": 80,
    "H20": 96,
    "RTX-PRO-6000": 96,
    "H200": 141,
    "B200": 180,
    "GB200": 186,
    "B300": 270,
    "GB300": 279,
}
"""Memory by Ray's accelerator type (ray ``util/accelerators``, 2.60; data sheets of the vendor):
the smallest of a kind that is sold in several sizes."""

JOBS_PER_GPU = 8
"""Jobs that share one GPU at most: each also wants a processor core that feeds it."""

_TYPE = "accelerator_type:"


def gpu_bytes(node: Mapping[str, float]) -> int:
    """Returns the memory of each GPU of a node, by the accelerator type that Ray found."""
    kinds = [name.removeprefix(_TYPE) for name in node if name.startswith(_TYPE)]
    sizes = [GPU_GIGABYTES[kind] for kind in kinds if kind in GPU_GIGABYTES]
    return int(min(sizes) * 0.95 * 1e9) if sizes else DEFAULT_GPU_BYTES


def choose_gpus(request: ResourceRequest, nodes: Sequence[Mapping[str, float]]) -> float:
    """Returns the GPUs of a request: as it says, or the share of a GPU that its need of memory is.

    Of different GPUs the smallest that has the memory counts. A need above all of them is a whole
    GPU.
    """
    if not request.gpu_memory_bytes or not request.gpus:
        return request.gpus
    sizes = [gpu_bytes(node) for node in nodes if node.get("GPU", 0.0)] or [DEFAULT_GPU_BYTES]
    fitting = [size // request.gpu_memory_bytes for size in sizes]
    jobs = min((count for count in fitting if count), default=1)
    return min(request.gpus, 1.0 / min(JOBS_PER_GPU, jobs))


def fit_request(
    request: ResourceRequest, nodes: Sequence[Mapping[str, float]], device: str
) -> ResourceRequest:
    """Returns what a job really asks for, given the resources of each node (Ray's names: ``CPU``,
    ``GPU``, ``memory``).

    Without any GPU in the cluster, or with ``device`` ``cpu``, the job runs on the CPU. CPUs and
    memory are at most those of the best node that has the GPUs. A cluster without any CPU yet is
    still starting, and is waited for with the whole request.
    """
    asked = 0.0 if device == "cpu" else choose_gpus(request, nodes)
    gpus = min(asked, max((node.get("GPU", 0.0) for node in nodes), default=0.0))
    if not any(node.get("CPU", 0.0) for node in nodes):
        return ResourceRequest(cpus=request.cpus, gpus=asked, memory_bytes=request.memory_bytes)
    able = [node for node in nodes if node.get("GPU", 0.0) >= gpus]
    cpus = min(request.cpus, max(node.get("CPU", 0.0) for node in able))
    memory = min(request.memory_bytes, int(max(node.get("memory", 0.0) for node in able)))
    return ResourceRequest(cpus=cpus, gpus=gpus, memory_bytes=memory)


def check_requests(
    requests: Mapping[Stage, ResourceRequest], nodes: Sequence[Mapping[str, float]], device: str
) -> list[str]:
    """Returns remarks on what is waited for. Raises ``UserError`` where no node has what a user
    asked for: such a job would wait for ever."""
    asked = {stage: request for stage, request in requests.items() if request.explicit}
    remarks = []
    for stage, request in asked.items():
        needs = {"CPU": request.cpus}
        if "gpus" in request.explicit and device != "cpu":
            needs["GPU"] = request.gpus
        if any(all(node.get(name, 0.0) >= needs[name] for name in needs) for node in nodes):
            continue
        text = f"a job of the stage `{stage}` asks for {_describe(needs)}"
        if not any(node.get("CPU", 0.0) for node in nodes):
            remarks.append(f"{text}: no node of the cluster has started yet, waiting for one.")
            continue
        largest = max(nodes, key=lambda node: (node.get("GPU", 0.0), node.get("CPU", 0.0)))
        has = {name: largest.get(name, 0.0) for name in ("CPU", "GPU")}
        raise UserError(
            f"{text}, but no node has that (the largest has {_describe(has)}): ask for less "
            "with --cpus-per-trial, --gpus-per-trial or `resources` of the search space, or start "
            "a larger node first."
        )
    return remarks


def _describe(amounts: Mapping[str, float]) -> str:
    texts = [f"{amount:g} {name}{'s' if amount != 1 else ''}" for name, amount in amounts.items()]
    return " and ".join(texts)


def list_nodes() -> list[Mapping[str, float]]:
    """Returns the resources of each node that is alive now."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


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
