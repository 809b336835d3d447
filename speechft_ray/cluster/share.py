"""Fits the resource request of a job to the nodes, so that no job waits for ever."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from speechft_ray.core.errors import UserError
from speechft_ray.core.records import Job, Place, Stage
from speechft_ray.core.resources import ResourceRequest, match_label

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

_TYPE, _LABEL = "accelerator_type:", "label:"


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
    """Returns what a job really asks for, given the resources of each node (``describe_node``).

    Without any GPU in the cluster, or with ``device`` ``cpu``, the job runs on the CPU. CPUs and
    memory are at most those of the best node that has the GPUs, and the memory that a user asked
    for; what a user asked for is not cut but waited for. A cluster without any CPU yet is still
    starting, and is waited for with the whole request.
    """
    nodes = [node for node in nodes if has_labels(node, request.labels)]
    asked = 0.0 if device == "cpu" else choose_gpus(request, nodes)
    whole = ResourceRequest(
        cpus=request.cpus, gpus=asked, memory_bytes=request.memory_bytes, labels=request.labels
    )
    if not any(node.get("CPU", 0.0) for node in nodes):
        return whole
    gpus = min(asked, max(node.get("GPU", 0.0) for node in nodes))
    able = [node for node in nodes if node.get("GPU", 0.0) >= gpus]
    if "memory_bytes" in request.explicit:
        needed = request.memory_bytes
        able = [node for node in able if node.get("memory", 0.0) >= needed] or able
    fitting = {
        "cpus": min(request.cpus, max(node.get("CPU", 0.0) for node in able)),
        "gpus": gpus,
        "memory_bytes": min(
            request.memory_bytes, int(max(node.get("memory", 0.0) for node in able))
        ),
    }
    free = {name: value for name, value in fitting.items() if name not in request.explicit}
    return whole.model_copy(update=free)


def has_labels(node: Mapping[str, float], labels: Mapping[str, str]) -> bool:
    """Whether a node has the labels that a request asks for."""
    values = {}
    for name in node:
        if name.startswith(_LABEL):
            key, _, value = name.removeprefix(_LABEL).partition("=")
            values[key] = value
    return all(match_label(selector, values.get(key)) for key, selector in labels.items())


def describe_node(node: Mapping[str, Any]) -> Mapping[str, float]:
    """Returns the resources of a node of ``ray.nodes()`` under Ray's names (``CPU``, ``GPU``,
    ``memory`` in bytes), and its labels as ``label:KEY=VALUE``."""
    labels = {f"{_LABEL}{key}={value}": 1.0 for key, value in (node.get("Labels") or {}).items()}
    return {**node["Resources"], **labels}


def check_requests(
    requests: Mapping[Stage, ResourceRequest],
    nodes: Sequence[Mapping[str, float]],
    device: str,
    *,
    is_fixed: bool = True,
) -> list[str]:
    """Returns remarks on what is waited for, since no node has what a user asked for. Raises
    ``UserError`` where the nodes are fixed: such a job would wait for ever."""
    remarks = []
    for stage, request in requests.items():
        if not request.explicit:
            continue
        needs = {"CPU": request.cpus}
        if "gpus" in request.explicit and device != "cpu":
            needs["GPU"] = request.gpus
        if "memory_bytes" in request.explicit:
            needs["memory"] = float(request.memory_bytes)
        able = [node for node in nodes if has_labels(node, request.labels)]
        if any(all(node.get(name, 0.0) >= needs[name] for name in needs) for node in able):
            continue
        text = f"a job of the stage `{stage}` asks for {describe_amounts(needs, request.labels)}"
        if not any(node.get("CPU", 0.0) for node in nodes):
            remarks.append(f"{text}: no node of the cluster has started yet, waiting for one.")
            continue
        largest = max(nodes, key=lambda node: (node.get("GPU", 0.0), node.get("CPU", 0.0)))
        has = {name: largest.get(name, 0.0) for name in ("CPU", "GPU", *needs)}
        text += f", but no node has that (the largest has {describe_amounts(has)})"
        if not is_fixed:
            remarks.append(f"{text}: waiting for one, as an autoscaler may start it.")
            continue
        raise UserError(
            f"{text}: ask for less with --cpus-per-trial, --gpus-per-trial, --memory-per-trial, "
            "--label or `resources` of the search space, or start a larger node first."
        )
    return remarks


def describe_amounts(amounts: Mapping[str, float], labels: Mapping[str, str] | None = None) -> str:
    """Returns amounts of resources under Ray's names as text."""
    texts = []
    for name, amount in amounts.items():
        if name == "memory":
            texts.append(f"{amount / 1e9:.3g} GB of memory")
        else:
            texts.append(f"{amount:g} {name}{'s' if amount != 1 else ''}")
    where = " and ".join(f"{key}={selector}" for key, selector in (labels or {}).items())
    return " and ".join(texts) + (f" on a node with {where}" if where else "")


def describe_wait(job: Job, share: ResourceRequest, nodes: Sequence[Mapping[str, float]]) -> str:
    """Returns a line about a job that has not started: what it asks for, and whether a node of the
    cluster has that."""
    needs = bundle(share)
    text = f"nothing runs; {job.label} waits for {describe_amounts(needs, share.labels)}"
    able = [node for node in nodes if has_labels(node, share.labels)]
    if any(all(node.get(name, 0.0) >= needs[name] for name in needs) for node in able):
        return f"{text}, which a node of the cluster has: others use it, or workers are starting."
    total = {name: sum(node.get(name, 0.0) for node in able) for name in ("CPU", "GPU", *needs)}
    where = "those nodes" if share.labels else "the cluster"
    return (
        f"{text}, which no node has ({where} together: {describe_amounts(total)}): start one, or "
        "ask for less (docs/clusters.md)."
    )


def list_nodes() -> list[Mapping[str, float]]:
    """Returns the resources of each node that is alive now."""
    return [describe_node(node) for node in ray.nodes() if node["Alive"]]


def slots(share: ResourceRequest, nodes: Sequence[Mapping[str, float]]) -> int:
    """Returns how many jobs with this share run at once on these nodes; at least 1, since one would
    be waited for."""
    needs = {name: amount for name, amount in bundle(share).items() if name in ("CPU", "GPU")}
    held = [
        min(int(node.get(name, 0.0) / amount + 1e-9) for name, amount in needs.items())
        for node in nodes
        if needs and has_labels(node, share.labels)
    ]
    return max(1, sum(held))


def eligible_nodes(share: ResourceRequest, nodes: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Returns the ids of the nodes that could run a job with this share, were they idle; sorted."""
    needs = bundle(share)
    return sorted(
        name
        for name, node in nodes.items()
        if all(node.get(key, 0.0) >= needs[key] for key in needs) and has_labels(node, share.labels)
    )


def task_options(share: ResourceRequest) -> dict[str, Any]:
    """Returns the share as options of a Ray task."""
    memory = {"memory": share.memory_bytes} if share.memory_bytes else {}
    labels = {"label_selector": share.labels} if share.labels else {}
    return {"num_cpus": share.cpus, "num_gpus": share.gpus, **memory, **labels}


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

    def look_again(self) -> None:
        """Looks at the nodes at the next question, however good the last look still is."""
        self._looked_at = float("-inf")

    def _refresh(self) -> None:
        if time.monotonic() - self._looked_at > LOOK_EVERY_SECONDS:
            self._nodes = {
                node["NodeID"]: describe_node(node) for node in ray.nodes() if node["Alive"]
            }
            self._looked_at = time.monotonic()
