"""Workers that die, trials that must end, and what workers may know: Ray for real, in one small
local cluster."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from speechft_ray.cluster import connect as connecting
from speechft_ray.cluster.connect import Cluster
from speechft_ray.cluster.executor import MAX_RETRIES, RayExecutor
from speechft_ray.core.errors import UserError
from speechft_ray.core.records import Place, Stage
from speechft_ray.core.resources import ResourceRequest
from tests.cluster.kill_and_resume import (
    DRIVER_DIES_AT,
    WORKERS_DIE_AT,
    KillAndResume,
    kill_and_resume,
)
from tests.cluster.ray_clusters import SECRETS, collect, eventually, local_cluster, ray_folder
from tests.cluster.worker_jobs import job, perform

__all__ = ["kill_and_resume", "local_cluster", "ray_folder"]  # fixtures
STAGES: list[Stage] = ["evaluate", "finetune"]


@pytest.fixture
def executor(local_cluster: Cluster, tmp_path: Path) -> Iterator[RayExecutor]:
    made = RayExecutor(perform, Place(storage=str(tmp_path), encoder="none"))
    yield made
    made.stop()


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_a_killed_worker_is_replaced(executor: RayExecutor) -> None:
    """A task; the trial of ``kill_and_resume`` is tested below."""
    executor.submit(job("die", times=1))
    (outcome,) = collect(executor, 1).values()
    assert outcome.ok and outcome.facts == {"lives": 2}


def test_a_job_that_kills_every_worker_fails_alone(executor: RayExecutor, tmp_path: Path) -> None:
    executor.submit(job("die", name="always", times=1000))
    executor.submit(job("succeed"))
    ended = collect(executor, 2)
    lost = ended["evaluate-always"]
    assert ended["evaluate-a"].ok
    assert (
        lost.error is not None
        and f"was lost {MAX_RETRIES + 1} times (WorkerCrashedError)" in lost.error
    )
    assert "\n" not in lost.error and lost.traceback
    assert (tmp_path / "lives-evaluate-always").read_text() == "x" * (MAX_RETRIES + 1)


def test_a_trial_that_kills_every_worker_fails_with_what_ray_knows(
    executor: RayExecutor, tmp_path: Path
) -> None:
    executor.submit(job("die", name="always", stage="finetune", times=1000))
    (lost,) = collect(executor, 1).values()
    assert (
        lost.error is not None
        and "this fine-tuning was lost 4 times" in lost.error
        and "\n" not in lost.error
    )
    assert (tmp_path / "lives-finetune-always").read_text() == "xxxx"


@pytest.fixture
def only_here(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module that the driver has and no worker can import."""
    module = types.ModuleType("only_here")
    exec(
        "def perform(job, place, report):\n    return {}\n\n"
        "class Probe:\n    def answer(self):\n        return True\n",
        module.__dict__,
    )
    monkeypatch.setitem(sys.modules, "only_here", module)
    return module


def test_code_that_a_node_lacks_is_named(
    local_cluster: Cluster, tmp_path: Path, only_here: types.ModuleType
) -> None:
    executor = RayExecutor(only_here.perform, Place(storage=str(tmp_path), encoder="none"))
    executor.submit(job("succeed"))
    executor.submit(job("succeed", stage="finetune"))
    outcomes = collect(executor, 2)
    executor.stop()
    for outcome in outcomes.values():
        assert outcome.error is not None and "No module named 'only_here'" in outcome.error
        assert "installed on every node" in outcome.error and "\n" not in outcome.error
        assert "memory" not in outcome.error


def test_a_cluster_without_the_package_is_no_matter_of_tokens(
    local_cluster: Cluster, only_here: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connecting, "_Probe", only_here.Probe)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with pytest.raises(UserError, match="No module named 'only_here'") as caught:
        connecting._check_actors(local_cluster.address)
    assert "token" not in str(caught.value) and "installed on every node" in str(caught.value)


@pytest.mark.parametrize("stage", STAGES)
def test_workers_get_their_settings_and_no_secrets(executor: RayExecutor, stage: Stage) -> None:
    assert all(
        os.environ[name] == value for name, value in SECRETS.items()
    )  # the driver keeps them
    executor.submit(job("environment", stage=stage))
    (outcome,) = collect(executor, 1).values()
    assert outcome.facts["OMP_NUM_THREADS"] == "1" and outcome.facts[
        "MALLOC_TRIM_THRESHOLD_"
    ] == str(1 << 30)
    assert not set(SECRETS) & set(outcome.facts)


def test_a_job_without_a_gpu_stays_on_the_cpu(executor: RayExecutor) -> None:
    executor.submit(job("succeed"))
    (outcome,) = collect(executor, 1).values()
    assert outcome.facts["device"] == "cpu"


def test_trials_can_follow_trials_in_silence(
    executor: RayExecutor, capfd: pytest.CaptureFixture[str]
) -> None:
    """As a chain of fine-tunings does: the second is submitted when the first is done."""
    for name in ("first", "second"):
        executor.submit(job("succeed", name=name, stage="finetune"))
        assert collect(executor, 1)[f"finetune-{name}"].ok
    assert capfd.readouterr().out == ""


def test_a_trial_gives_its_share_back_when_it_ends(executor: RayExecutor) -> None:
    """Tune by itself keeps the last trial's for up to ten minutes, while evaluations wait for the
    GPU."""
    whole = ResourceRequest(cpus=2)
    executor.submit(job("succeed", stage="finetune", resources=whole))
    assert collect(executor, 1)["finetune-a"].ok
    executor.submit(job("succeed", resources=whole))
    assert collect(executor, 1, seconds=300)["evaluate-a"].ok


def test_stopping_ends_what_runs(executor: RayExecutor, tmp_path: Path) -> None:
    beats = [tmp_path / f"beat-{stage}-a" for stage in STAGES]
    for stage in STAGES:
        executor.submit(job("wait", stage=stage))
    assert eventually(lambda: all(path.exists() and path.read_text() for path in beats))
    pids = [int(path.read_text().split()[0]) for path in beats]
    executor.stop()
    assert eventually(lambda: not any(alive(pid) for pid in pids))
    assert executor.outcomes(0.1) == []


def test_after_killed_drivers_and_workers_the_weights_are_the_same_to_the_bit(
    kill_and_resume: KillAndResume,
) -> None:
    assert kill_and_resume.killed.ok, kill_and_resume.killed.error
    assert kill_and_resume.killed.facts == kill_and_resume.undisturbed


def test_every_life_goes_on_where_the_one_before_was_killed(kill_and_resume: KillAndResume) -> None:
    assert (
        len(kill_and_resume.begun) == 5
        and kill_and_resume.begun[0] == 1
        and kill_and_resume.begun[1] > DRIVER_DIES_AT
    )
    # The state after the last update may not have been saved yet when its process died.
    assert all(
        begun in (died, died + 1)
        for begun, died in zip(kill_and_resume.begun[2:], WORKERS_DIE_AT, strict=True)
    )


def test_a_hopeless_learning_rate_is_stopped_and_a_good_one_is_not(
    kill_and_resume: KillAndResume,
) -> None:
    assert float(str(kill_and_resume.killed.facts["best_dev"])) > 60  # chance is 33 %
    stopped = kill_and_resume.unpromising
    assert (
        not stopped.ok
        and stopped.stopped
        and stopped.blocked_by is None
        and stopped.traceback is None
    )
    assert stopped.error is not None and "\n" not in stopped.error
    assert stopped.error.startswith(
        "stopped early after 25 % of its updates, since its validation (goodness 33.33) was not"
    )
    assert kill_and_resume.unpromising_saved in (19, 20)  # it may go on one day
