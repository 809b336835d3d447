"""Two GPUs as far as Ray knows, each shared by two evaluations that need less than half of one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from speechft_ray.cluster.connect import connect
from speechft_ray.cluster.executor import RayExecutor
from speechft_ray.core.records import Place
from speechft_ray.core.resources import ResourceRequest
from tests.cluster.ray_clusters import STORE_BYTES, collect, ray_folder
from tests.cluster.worker_jobs import job, perform

__all__ = ["ray_folder"]  # fixture
SMALL_NEED = ResourceRequest(cpus=1, gpus=1, gpu_memory_bytes=7 << 30)  # of 16 GiB by default

ON_CPU = ResourceRequest(cpus=1)


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def executor(ray_folder: Path, tmp_path: Path, notes: list[str]) -> Iterator[RayExecutor]:
    cluster = connect("local", cpus=4, gpus=2, store_bytes=STORE_BYTES)
    place = Place(storage=str(tmp_path), encoder="none")
    made = RayExecutor(perform, place, cluster=cluster, note=notes.append)
    yield made
    made.stop()


def test_four_evaluations_of_small_need_run_at_once_on_two_gpus(executor: RayExecutor) -> None:
    assert executor.slots(job("meet", resources=SMALL_NEED)) == 4
    for name in "abcd":  # each waits until all four are there
        executor.submit(job("meet", name=name, at="gpus", count=4, resources=SMALL_NEED))
    ended = collect(executor, 4)
    assert all(outcome.ok for outcome in ended.values()), ended
    gpus = [str(outcome.facts["gpus"]) for outcome in ended.values()]
    assert sorted(gpus) == ["[0]", "[0]", "[1]", "[1]"]
    assert {outcome.facts["share"] for outcome in ended.values()} == {0.5}


def test_a_process_that_had_a_gpu_performs_no_other_job(executor: RayExecutor) -> None:
    """It has a CUDA context on its GPU, also while Ray counts a later job on the other one."""
    processes = []
    for name in "efgh":
        executor.submit(job("meet", name=name, at=name, count=1, resources=SMALL_NEED))
        (outcome,) = collect(executor, 1).values()
        assert outcome.facts["gpus"], outcome
        processes.append(outcome.facts["pid"])
    assert len(set(processes)) == len(processes)


def test_a_process_without_a_gpu_is_used_again(executor: RayExecutor) -> None:
    """A new one imports torch for seconds."""
    processes = []
    for name in "ijkl":
        executor.submit(job("meet", name=name, at=name, count=1, resources=ON_CPU))
        processes.append(next(iter(collect(executor, 1).values())).facts["pid"])
    assert len(set(processes)) < len(processes)


def test_an_evaluation_whose_share_was_too_small_gets_a_whole_gpu(
    executor: RayExecutor, notes: list[str]
) -> None:
    executor.submit(job("need-gpu", resources=SMALL_NEED))
    (outcome,) = collect(executor, 1).values()
    assert outcome.ok and outcome.facts["share"] == 1.0, outcome
    (note,) = notes
    assert note == (
        "evaluate a: the GPU's memory ran out with a share of 0.5. It runs again with a whole GPU."
    )


def test_a_share_that_a_user_asked_for_stays(executor: RayExecutor) -> None:
    asked = ResourceRequest(cpus=1, gpus=0.5, explicit=("gpus",))
    executor.submit(job("need-gpu", resources=asked))
    (outcome,) = collect(executor, 1).values()
    assert outcome.error == "the GPU's memory ran out with a share of 0.5."
