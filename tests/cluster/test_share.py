"""What a job gets of a cluster."""

from __future__ import annotations

import pytest

from speechft_ray.cluster.share import (
    DEFAULT_GPU_BYTES,
    bundle,
    check_requests,
    describe_wait,
    eligible_nodes,
    fit_request,
    gpu_bytes,
    slots,
    task_options,
)
from speechft_ray.cluster.trainable import _place
from speechft_ray.core.errors import UserError
from speechft_ray.core.records import Job
from speechft_ray.core.resources import ResourceRequest, match_label

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


GIB = 1 << 30


@pytest.mark.parametrize(
    ("need_gib", "node", "expected"),
    [
        (7, {"GPU": 1.0}, 1 / 2),  # 16 GiB where Ray tells no kind
        (4, {"GPU": 1.0}, 1 / 4),
        (4, {"GPU": 8.0, "accelerator_type:A100-80G": 1.0}, 1 / 8),  # eight jobs at most
        (40, {"GPU": 8.0, "accelerator_type:H100": 1.0}, 1.0),
        (30, {"GPU": 8.0, "accelerator_type:H100": 1.0}, 1 / 2),
        (30, {"GPU": 1.0}, 1.0),  # too large for it: all of it
        (2, {"CPU": 2.0}, 0.0),
    ],
)
def test_a_need_of_memory_is_a_share_of_a_gpu(
    need_gib: int, node: dict[str, float], expected: float
) -> None:
    request = ResourceRequest(cpus=1, gpus=1, gpu_memory_bytes=need_gib * GIB)
    assert fit_request(request, [{"CPU": 8.0, **node}], "auto") == ask(1, expected)
    assert fit_request(request, [{"CPU": 8.0, **node}], "cpu") == ask(1, 0)


def test_of_different_gpus_the_smallest_that_is_large_enough_counts() -> None:
    nodes = [{"CPU": 8.0, "GPU": 1.0, f"accelerator_type:{kind}": 1.0} for kind in ("T4", "H100")]
    for need_gib, expected in ((7, 1 / 2), (20, 1 / 3)):
        request = ResourceRequest(cpus=1, gpus=1, gpu_memory_bytes=need_gib * GIB)
        assert fit_request(request, nodes, "auto").gpus == pytest.approx(expected)


def test_what_a_user_asks_for_is_refused_where_no_node_has_it() -> None:
    def check(nodes: list[dict[str, float]], device: str = "auto", **asked: float) -> list[str]:
        request = ResourceRequest(**asked, explicit=tuple(asked))  # type: ignore[arg-type]
        return check_requests({"evaluate": request}, nodes, device)

    assert check([SMALL, BIG], gpus=2, cpus=16) == []
    with pytest.raises(UserError) as caught:
        check([SMALL, BIG], gpus=4)
    assert "`evaluate` asks for 1 CPU and 4 GPUs" in str(caught.value)
    assert "the largest has 16 CPUs and 2 GPUs" in str(caught.value)
    with pytest.raises(UserError, match="asks for 64 CPUs, but no node has that"):
        check([SMALL, BIG], cpus=64)
    assert check([SMALL], "cpu", gpus=4) == []  # --cpu: no GPU is used
    # A cluster that starts with a head without CPUs gets its nodes later.
    assert "waiting for one" in check([HEAD], gpus=1)[0]
    # Defaults are fitted instead.
    assert check_requests({"evaluate": ask(64, 4)}, [SMALL], "auto") == []


LABEL = "ray.io/accelerator-type"
A100 = {**BIG, f"label:{LABEL}=A100": 1.0}


@pytest.mark.parametrize(
    ("selector", "value", "expected"),
    [
        *(("A100", "A100", True), ("A100", "L4", False), ("A100", None, False)),
        *(("!A100", "A100", False), ("!A100", "L4", True), ("!A100", None, True)),
        *(("in(A100, L4)", "L4", True), ("in(A100,L4)", "T4", False), ("in(A100)", None, False)),
        *(("!in(A100,L4)", "L4", False), ("!in(A100,L4)", "T4", True)),
    ],
)
def test_labels_match_as_in_ray(selector: str, value: str | None, expected: bool) -> None:
    """https://docs.ray.io/en/latest/ray-core/scheduling/labels.html"""
    assert match_label(selector, value) is expected
    nodes = {"one": {**BIG, **({f"label:{LABEL}={value}": 1.0} if value else {})}}
    request = ResourceRequest(labels={LABEL: selector})
    assert eligible_nodes(request, nodes) == (["one"] if expected else [])
    assert task_options(request)["label_selector"] == {LABEL: selector}


def test_a_request_is_fitted_to_the_nodes_with_its_labels() -> None:
    request = ResourceRequest(cpus=32, gpus=4, labels={LABEL: "A100"})
    large = {"CPU": 64.0, "GPU": 8.0, "memory": 1.0}
    fitted = fit_request(request, [large, A100], "auto")
    assert (fitted.cpus, fitted.gpus, fitted.labels) == (16, 2, {LABEL: "A100"})
    assert slots(fitted, [large, A100]) == 1


def test_what_a_user_asks_for_is_never_cut() -> None:
    """A node with it may be lost, or be started by an autoscaler."""
    request = ResourceRequest(cpus=2, gpus=1, memory_bytes=10, explicit=("gpus",))
    fitted = fit_request(request, [SMALL], "auto")
    assert (fitted.cpus, fitted.gpus) == (2, 1)
    assert fit_request(request, [SMALL], "cpu").gpus == 0
    unasked = ResourceRequest(cpus=2, gpus=1)
    assert fit_request(unasked, [SMALL], "auto").gpus == 0


def test_cpus_are_those_of_a_node_with_the_memory_that_a_user_asks_for() -> None:
    request = ResourceRequest(cpus=64, memory_bytes=500, explicit=("memory_bytes",))
    fitted = fit_request(request, [BIG, {"CPU": 64.0, "memory": 100.0}], "auto")
    assert (fitted.cpus, fitted.memory_bytes) == (16, 500)
    assert fit_request(request, [SMALL], "auto").cpus == 4


def test_labels_and_memory_that_no_node_has() -> None:
    request = ResourceRequest(
        memory_bytes=20_000_000_000, labels={LABEL: "H100"}, explicit=("memory_bytes", "labels")
    )
    sentence = r"1 CPU and 20 GB of memory on a node with ray.io/accelerator-type=H100, but no node"
    with pytest.raises(UserError, match=sentence):
        check_requests({"finetune": request}, [SMALL, A100], "auto")
    (remark,) = check_requests({"finetune": request}, [SMALL, A100], "auto", is_fixed=False)
    assert "waiting for one" in remark
    fitting = ResourceRequest(memory_bytes=500, labels={LABEL: "A100"}, explicit=("labels",))
    assert check_requests({"finetune": fitting}, [SMALL, A100], "auto") == []


def test_a_trial_asks_for_its_labels() -> None:
    share = ResourceRequest(cpus=2, labels={LABEL: "A100"})
    config = {**share.model_dump(), "avoid": {"ray.io/node-id": "!in(a)"}}
    placement = _place(config)
    assert placement.bundles == [{"CPU": 2.0}]
    assert placement._kwargs["bundle_label_selector"] == [
        {LABEL: "A100", "ray.io/node-id": "!in(a)"}
    ]


def test_what_is_waited_for_is_said() -> None:
    job = Job(stage="finetune", fingerprint="f", label="finetune a", payload={})
    text = describe_wait(job, ask(1, 1), [SMALL, SMALL])
    assert "finetune a waits for 1 CPU and 1 GPU, which no node has" in text
    assert "8 CPUs and 0 GPUs" in text
    assert "others use it" in describe_wait(job, ask(1, 1), [SMALL, BIG])
    labels = ResourceRequest(cpus=1, labels={LABEL: "H100"})
    assert f"on a node with {LABEL}=H100, which no node has" in describe_wait(job, labels, [A100])


def test_a_twentieth_of_a_gpu_is_left_to_its_driver() -> None:
    assert gpu_bytes({"CPU": 8.0, "accelerator_type:H100": 1.0}) == 76_000_000_000
    assert gpu_bytes({"CPU": 8.0, "accelerator_type:other": 1.0}) == DEFAULT_GPU_BYTES
