"""What a job gets of a cluster."""

from __future__ import annotations

import pytest

from speechft_ray.cluster.share import bundle, eligible_nodes, fit_request, slots, task_options
from speechft_ray.core.resources import ResourceRequest

SMALL, BIG = {"CPU": 4.0, "memory": 100.0}, {"CPU": 16.0, "GPU": 2.0, "memory": 1000.0}
HEAD = {"memory": 50.0}  # a head that runs no jobs


def ask(cpus: float = 1, gpus: float = 0, memory_bytes: int = 0) -> ResourceRequest:
    return ResourceRequest(cpus=cpus, gpus=gpus, memory_bytes=memory_bytes)


@pytest.mark.parametrize(
    ("request_", "nodes", "device", "expected"),
    [
        (ask(2, 1), [SMALL, BIG], "auto", ask(2, 1)),
        (ask(2, 0.5), [SMALL, BIG], "auto", ask(2, 0.5)),
        (ask(2, 1), [SMALL], "auto", ask(2, 0)),  # no GPU anywhere: the CPU
        (ask(2, 1), [SMALL, BIG], "cpu", ask(2, 0)),  # --cpu
        (ask(8, 0), [SMALL], "auto", ask(4, 0)),  # would wait for ever
        (ask(8, 0), [SMALL, BIG], "auto", ask(8, 0)),
        (ask(64, 4), [{"CPU": 64.0}, BIG], "auto", ask(16, 2)),  # the CPUs beside the GPUs count
        (ask(1, 0, 500), [SMALL], "auto", ask(1, 0, 100)),
        (ask(2, 1, 500), [HEAD], "auto", ask(2, 1, 500)),  # workers are still to come
        (ask(2, 1), [], "auto", ask(2, 1)),
    ],
)
def test_requests_are_cut_to_the_best_node(
    request_: ResourceRequest, nodes: list[dict[str, float]], device: str, expected: ResourceRequest
) -> None:
    assert fit_request(request_, nodes, device) == expected


def test_eligible_nodes_have_what_a_share_wants() -> None:
    nodes = {"small": SMALL, "head": HEAD, "big": BIG}
    assert eligible_nodes(ask(4), nodes) == ["big", "small"]
    assert (
        eligible_nodes(ask(4, 1), nodes)
        == eligible_nodes(ask(5), nodes)
        == eligible_nodes(ask(1, 0, 500), nodes)
        == ["big"]
    )
    assert eligible_nodes(ask(64), nodes) == []


def test_a_share_in_rays_words() -> None:
    assert task_options(ask(2, 0.5)) == {"num_cpus": 2, "num_gpus": 0.5}
    assert task_options(ask(1, 0, 9)) == {"num_cpus": 1, "num_gpus": 0, "memory": 9}
    assert bundle(ask(2, 0.5, 9)) == {"CPU": 2, "GPU": 0.5, "memory": 9}
    assert bundle(ask(0, 0)) == {"CPU": 0.01}


@pytest.mark.parametrize(
    ("cpus", "gpus", "nodes", "expected"),
    [
        (1, 0.5, [{"CPU": 16, "GPU": 2}, {"CPU": 3, "GPU": 4}], 4 + 3),
        (1, 0, [{"CPU": 4}, {"CPU": 2.5}], 6),
        (0.1, 0, [{"CPU": 0.3}], 3),
        (1, 1, [], 1),
        (8, 0, [{"CPU": 2}], 1),
    ],
)
def test_slots_are_what_all_nodes_hold(
    cpus: float, gpus: float, nodes: list[dict[str, float]], expected: int
) -> None:
    assert slots(ResourceRequest(cpus=cpus, gpus=gpus), nodes) == expected
