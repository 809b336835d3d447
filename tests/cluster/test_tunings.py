"""Real fine-tuning in real trials of Ray Tune: killed drivers and workers, and trials that are stopped early."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from speechft_ray.cluster.connect import Cluster
from speechft_ray.cluster.executor import RayExecutor
from speechft_ray.core.records import Place
from speechft_ray.core.specs import StopSpec
from tests.cluster.rays import ROOT, collect, eventually, local_cluster, ray_world
from tests.cluster.tunings import perform, tuned, tuning
from tests.finetuning.toys import objective, spec, toy_family

__all__ = ["local_cluster", "ray_world", "toy_family"]  # fixtures


@pytest.fixture
def executor(local_cluster: Cluster, tmp_path: Path) -> Iterator[RayExecutor]:
    made = RayExecutor(perform, Place(storage=str(tmp_path), encoder="none"))
    yield made
    made.stop()


def nothing(values: Mapping[str, float]) -> None:
    pass


def test_driver_and_workers_are_killed_and_the_weights_are_the_same_to_the_bit(
    executor: RayExecutor, local_cluster: Cluster, tmp_path: Path, toy_family: None
) -> None:
    """SIGKILL of the driver in the middle of a run; a second driver's trial then loses its worker three times in a row."""
    chance = random.Random(0)
    updates = 40
    plan = spec(objective("ctc"), updates=updates, validate_every_updates=7, seed=3)
    undisturbed = tuned(plan, tmp_path / "undisturbed", nothing)
    first = chance.randint(2, 8)
    kills = sorted(chance.sample(range(12, updates), 3))
    job = tuning("killed", plan, kills=[updates + 1, *kills])  # the first life ends with its driver
    lives, work = tmp_path / f"lives-{job.fingerprint}", tmp_path / f"work-{job.fingerprint}"
    command = [sys.executable, "-m", "tests.cluster.tunings", local_cluster.address, str(tmp_path)]
    slow = job.model_copy(update={"payload": {**job.payload, "pause_seconds": 0.1}})
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([*command, slow.model_dump_json()], cwd=ROOT, env=environment) as driver:
        assert eventually(lambda: newest(work) >= first, seconds=60) and driver.poll() is None
        driver.send_signal(signal.SIGKILL)
    assert driver.returncode == -signal.SIGKILL
    assert newest(work) < updates

    executor.submit(job)
    (outcome,) = collect(executor, 1, seconds=120).values()
    assert outcome.ok, outcome.error
    assert outcome.facts == json.loads(json.dumps(undisturbed)), (first, kills)
    begun = [int(line) for line in lives.read_text().split()]
    assert len(begun) == 5 and begun[0] == 1
    assert (
        begun[1] > first and [last - 1 <= later - 1 <= last for last, later in zip(kills, begun[2:], strict=True)] == [True] * 3
    )


def test_a_hopeless_learning_rate_is_stopped_and_a_good_one_is_not(executor: RayExecutor, tmp_path: Path) -> None:
    stop = StopSpec(rule="asha", grace=0.25, keep_one_of=2).model_dump(mode="json")
    good, hopeless = (
        tuning(name, spec(updates=80, validate_every_updates=10, peak_learning_rate=rate), stop=stop)
        for name, rate in (("good", 3e-2), ("hopeless", 1e-9))
    )
    executor.submit(good)
    executor.submit(hopeless)  # it starts when the good one has ended and given both CPUs back
    ended = collect(executor, 2, seconds=120)
    kept, stopped = ended[good.fingerprint], ended[hopeless.fingerprint]
    assert kept.ok and float(str(kept.facts["best_dev"])) > 60  # chance is 33 %
    assert not stopped.ok and stopped.stopped and stopped.blocked_by is None and stopped.traceback is None
    assert stopped.error is not None and stopped.error.startswith(
        "stopped early after 25 % of its updates, since its validation"
    )
    assert "was not among the best 1 of 2 of the runs `toy`" in stopped.error and "\n" not in stopped.error
    # It may go on one day: its last state is there, and is that of the update at which it was stopped, or the one before.
    assert newest(tmp_path / f"work-{hopeless.fingerprint}") in (19, 20)


def newest(work: Path) -> int:
    return max((int(path.name.split("-")[1]) for path in work.glob("state-*")), default=0)
