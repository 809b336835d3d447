"""Real fine-tuning in real Ray Tune trials, run once for all tests, since a trial starts slowly.

The driver of a run is killed, then three times in a row its worker. Then a second run of the same
name follows, which cannot improve and must be stopped.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from speechft_ray.cluster.connect import Cluster
from speechft_ray.cluster.executor import RayExecutor
from speechft_ray.core.records import Job, Outcome, Place
from speechft_ray.core.specs import StopSpec
from speechft_ray.speech.encoders.base import FAMILIES
from tests.cluster.ray_clusters import ROOT, collect, eventually
from tests.cluster.tuning_jobs import perform, tune_toy, tuning
from tests.finetuning.toy_models import TOY, spec

UPDATES = 80
CHANCE = random.Random(0)
DRIVER_DIES_AT = CHANCE.randint(2, 12)
WORKERS_DIE_AT = sorted(CHANCE.sample(range(30, UPDATES), 3))


class KillAndResume(NamedTuple):
    undisturbed: dict[str, Any]
    killed: Outcome
    begun: list[int]
    """The first update of every life of the killed run."""
    unpromising: Outcome
    unpromising_saved: int
    """The update of the newest state that the unpromising run left."""


@pytest.fixture(scope="module")
def kill_and_resume(
    local_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[KillAndResume]:
    home = tmp_path_factory.mktemp("tunings")
    plan = spec(updates=UPDATES, validate_every_updates=10, peak_learning_rate=3e-2)
    stop = StopSpec(rule="asha", grace_period=0.25, reduction_factor=2).model_dump(mode="json")
    killed = tuning(
        "killed", plan, stop=stop, kills=[UPDATES + 1, *WORKERS_DIE_AT]
    )  # the first life ends with its driver
    unpromising = tuning(
        "unpromising", plan.model_copy(update={"peak_learning_rate": 1e-9}), stop=stop
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FAMILIES, "_discovered", True)
        patch.setitem(FAMILIES._parts, "toy", TOY)
        undisturbed = tune_toy(plan, home / "undisturbed", lambda values: None)
    die_with_its_driver(killed, local_cluster.address, home)
    executor = RayExecutor(perform, Place(storage=str(home), encoder="none"))
    executor.submit(killed)
    executor.submit(unpromising)  # it starts when the other has ended and given both CPUs back
    ended = collect(executor, 2)
    executor.stop()
    begun = [int(line) for line in (home / f"lives-{killed.fingerprint}").read_text().split()]
    yield KillAndResume(
        json.loads(json.dumps(undisturbed)),
        ended[killed.fingerprint],
        begun,
        ended[unpromising.fingerprint],
        newest(home, unpromising),
    )


def die_with_its_driver(job: Job, address: str, home: Path) -> None:
    """Has a driver of its own run the job on the cluster, and kills the driver in the middle."""
    slow = job.model_copy(update={"payload": {**job.payload, "pause_seconds": 0.1}})
    command = [
        sys.executable,
        "-m",
        "tests.cluster.tuning_jobs",
        address,
        str(home),
        slow.model_dump_json(),
    ]
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}) as driver:
        assert eventually(lambda: newest(home, job) >= DRIVER_DIES_AT) and driver.poll() is None
        driver.send_signal(signal.SIGKILL)
    assert newest(home, job) < UPDATES


def newest(home: Path, job: Job) -> int:
    return max(
        (
            int(path.name.split("-")[1])
            for path in (home / f"work-{job.fingerprint}").glob("state-*")
        ),
        default=0,
    )
