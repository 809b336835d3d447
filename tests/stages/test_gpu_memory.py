"""What a job does with the memory of its GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from speechft_ray.core.errors import GpuMemoryError
from speechft_ray.core.records import Place
from speechft_ray.core.resources import ResourceRequest
from speechft_ray.speech.gpu_memory import is_out_of_memory
from speechft_ray.stages import perform as module
from speechft_ray.sweep.local import perform_safely
from tests.cluster.worker_jobs import job

ESTIMATED = ResourceRequest(cpus=1, gpus=1, gpu_memory_bytes=7 << 30)


def ignore(values: Any) -> None:
    pass


@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("GET was unable to find an engine to execute this computation"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (MemoryError("GET was unable to find an engine"), False),
    ],
)
def test_a_lack_of_memory_has_many_names(error: Exception, counts: bool) -> None:
    assert is_out_of_memory(error) == counts


@pytest.mark.parametrize(
    ("share", "request_", "gets_more"),
    [
        (0.5, ESTIMATED, True),
        (1.0, ESTIMATED, False),  # nothing is larger
        (0.5, ResourceRequest(cpus=1, gpus=0.5, explicit=("gpus",)), False),
    ],
)
def test_a_job_says_that_its_share_was_too_small(
    share: float,
    request_: ResourceRequest,
    gets_more: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run_out(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore.")

    monkeypatch.setattr(module, "_STAGES", {"evaluate": run_out})
    place = Place(storage=str(tmp_path), encoder="none", gpu_share=share)
    one = job("none", resources=request_)
    with pytest.raises(
        GpuMemoryError, match=r"ran out \(CUDA out of .* GiB\.\): lower `batch_size`"
    ):
        module.perform(one, place, ignore)
    outcome = perform_safely(module.perform, one, place, ignore)
    assert outcome.lacks_gpu_share == gets_more and not outcome.ok


@pytest.fixture
def shares(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The shares of a GPU of 16 GiB that torch was limited to."""
    limits: list[float] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (15 << 30, 16 << 30))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", limits.append)
    return limits


def test_a_shared_gpu_gives_a_job_its_share(shares: list[float]) -> None:
    place = Place(storage="unused", encoder="none")
    for share in (1.0, 2.0, 0.5):
        device = module._select_device(
            job("none", resources=ESTIMATED), place.model_copy(update={"gpu_share": share})
        )
        assert device.type == "cuda"
    on_cpu = place.model_copy(update={"device": "cpu", "gpu_share": 0.5})
    assert module._select_device(job("none"), on_cpu).type == "cpu"
    assert shares == [0.5]


def test_a_gpu_that_is_smaller_than_was_assumed_is_seen_before_work(shares: list[float]) -> None:
    """Such as a part of one (MIG), of which Ray tells the kind of the whole."""
    place = Place(storage="unused", encoder="none", gpu_share=0.125)
    with pytest.raises(GpuMemoryError, match=r"has 2\.15 GB and the job needs up to 7\.52 GB"):
        module._select_device(job("none", resources=ESTIMATED), place)
    assert not shares
    module._select_device(job("none", resources=ResourceRequest(gpus=0.125)), place)
    assert shares == [0.125]  # a user asked for it
