"""Workers that die, trials that must end, and what workers may know: Ray for real, in one small
local cluster."""

from __future__ import annotations

import os
import sys
import time
import types
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import pytest
import ray
from ray.exceptions import OutOfMemoryError, WorkerCrashedError

from speechft_ray.cluster import connect as connecting
from speechft_ray.cluster import executor as executing
from speechft_ray.cluster.connect import Cluster
from speechft_ray.cluster.evaluation_queue import FEWEST
from speechft_ray.cluster.executor import WHOLE_NODE, RayExecutor
from speechft_ray.core.errors import UserError
from speechft_ray.core.records import Job, Limits, Place, Stage
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
LIVES = Limits().retries + 1
STAGES: list[Stage] = ["evaluate", "finetune"]
TRIAL_IS_SLOW = ["evaluate", pytest.param("finetune", marks=pytest.mark.slow)]


@pytest.fixture
def executor(local_cluster: Cluster, tmp_path: Path) -> Iterator[RayExecutor]:
    made = RayExecutor(perform, Place(storage=str(tmp_path), encoder="none"))
    yield made
    made.stop()


def has_progress(executor: RayExecutor, done: float) -> bool:
    """Whether a job got so far. Asks for outcomes as a driver does: it is there that a lost task is
    submitted again."""
    assert not executor.outcomes(0.1)
    return any(item.done == done for item in executor.progress().values())


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):  # the second where it ends while it is read
        return False


def test_a_killed_worker_is_replaced(executor: RayExecutor) -> None:
    """A task; the trial of ``kill_and_resume`` is tested below."""
    executor.submit(job("die", times=1))
    (outcome,) = collect(executor, 1).values()
    assert outcome.ok and outcome.facts == {"lives": 2}


def test_a_lost_task_that_waits_does_not_look_as_if_it_ran(
    executor: RayExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = job("succeed")
    executor._jobs[one.fingerprint] = one
    put = executor._progress_actor.put.remote(one.fingerprint, {"done": 40.0, "total": 100.0}, [])
    ray.get(put)
    assert eventually(lambda: one.fingerprint in executor.progress(), seconds=60)
    monkeypatch.setattr(executor, "_start", lambda job: None)  # no node has room for it
    executor._lost.put((one, WorkerCrashedError()))
    assert eventually(lambda: not executor.outcomes(0.1) and not executor.progress(), seconds=60)
    monkeypatch.setattr(executing, "WAIT_SECONDS", 0.0)
    executor.progress()
    assert executor._idle_since == float("inf"), "what is waited for is said"


@pytest.mark.slow
def test_a_lost_task_and_merges_do_not_wait_behind_the_queue(
    executor: RayExecutor, tmp_path: Path
) -> None:
    """Two tasks run and eight wait, when one of the two is lost and a merge comes. Then one ends
    after the other, and the next only once a new one has started: new workers start slowly."""
    executor.submit(job("stamp", name="lost", times=1))
    for name in "abcdefghi":
        executor.submit(job("stamp", name=name))
    assert eventually(lambda: not executor.outcomes(0.1) and bool(executor._lost_once))
    executor.submit(job("stamp", stage="merge"))

    def read_order() -> list[str]:
        return (tmp_path / "order").read_text().split()

    assert eventually(lambda: len(read_order()) == 2)
    for number in range(11):
        (tmp_path / f"go-{read_order()[number]}").touch()
        assert eventually(partial(lambda least: len(read_order()) >= least, min(11, number + 3)))
    assert all(outcome.ok for outcome in collect(executor, 11).values())
    order = read_order()
    assert max(order.index("evaluate-lost"), order.index("merge-a")) < order.index("evaluate-i")


@pytest.mark.slow
def test_a_lost_trial_does_not_wait_behind_the_queue(executor: RayExecutor, tmp_path: Path) -> None:
    """It runs on one of two CPUs and forty evaluations want both, when it is lost."""
    executor.submit(job("climb", stage="finetune", steps=[10, 20]))
    assert eventually(partial(has_progress, executor, 10.0))
    (tmp_path / "go").touch()
    for number in range(40):
        executor.submit(job("stamp", name=f"{number:02d}"))
    (tmp_path / "die-1").touch()
    ended: list[str] = []
    while len(ended) < 41:
        ended += [outcome.fingerprint for outcome in executor.outcomes(1.0) if outcome.ok]
    assert ended.index("finetune-a") < FEWEST + 4, ended


def test_a_job_that_kills_every_worker_fails_alone(executor: RayExecutor, tmp_path: Path) -> None:
    executor.submit(job("die", name="always", times=1000))
    executor.submit(job("succeed"))
    ended = collect(executor, 2)
    lost = ended["evaluate-always"]
    assert ended["evaluate-a"].ok
    assert (
        lost.error is not None
        and f"was lost {LIVES} times without progress in between (WorkerCrashedError)" in lost.error
    )
    assert "\n" not in lost.error and lost.traceback
    assert (tmp_path / "lives-evaluate-always").read_text() == "x" * LIVES


@pytest.mark.slow
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


@pytest.mark.parametrize("stage", TRIAL_IS_SLOW)
def test_progress_gives_a_job_its_lives_back(
    local_cluster: Cluster, tmp_path: Path, stage: Stage
) -> None:
    """With one retry, a job that got further in each of three lives ends well; one that dies twice
    at the same point does not."""
    place = Place(storage=str(tmp_path), encoder="none")
    executor = RayExecutor(perform, place, limits=Limits(retries=1))
    executor.submit(job("climb", stage=stage, steps=[10, 20, 30]))
    for life in (1, 2):
        got_further = partial(has_progress, executor, 10.0 * life)
        assert eventually(got_further)
        (tmp_path / f"die-{life}").touch()
    (outcome,) = collect(executor, 1).values()
    assert outcome.ok and outcome.facts == {"lives": 3}, outcome.error
    executor.submit(job("climb", name="stuck", stage=stage, steps=[10, 10, 10]))
    (outcome,) = collect(executor, 1).values()
    assert "lost 2 times without progress in between" in (outcome.error or "")
    executor.stop()


@pytest.mark.parametrize("stage", TRIAL_IS_SLOW)
def test_a_job_that_hangs_is_killed_and_runs_again(
    local_cluster: Cluster, tmp_path: Path, stage: Stage
) -> None:
    """Its process is stopped, as by SIGSTOP or a file system that never answers, and cannot end
    itself."""
    notes: list[str] = []
    limits = Limits(stall_minutes={stage: 0.05})
    place = Place(storage=str(tmp_path), encoder="none")
    executor = RayExecutor(perform, place, limits=limits, note=notes.append)
    executor.submit(job("hang", stage=stage))
    assert eventually(lambda: bool(executor.progress()) and any("killed" in note for note in notes))
    (outcome,) = collect(executor, 1).values()
    assert outcome.ok and outcome.facts == {"lives": 2}, outcome.error
    assert f"{stage} a: no progress for" in notes[0]
    executor.stop()


def test_trials_go_on_when_tune_breaks(executor: RayExecutor, tmp_path: Path) -> None:
    """Another experiment is opened for what has not ended."""
    trials = executor._trials
    breaks: list[object] = []
    tuner = trials._tuner

    def break_once() -> object:
        if not breaks:
            breaks.append(trials._searcher.suggest("lost"))
            raise RuntimeError("Caught unexpected exception")
        return tuner()

    trials._tuner = break_once  # type: ignore[method-assign]
    for name in "ab":
        executor.submit(job("succeed", name=name, stage="finetune"))
    assert all(outcome.ok for outcome in collect(executor, 2).values()) and breaks


def test_when_memory_runs_out_the_next_life_has_more_of_the_node(
    executor: RayExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[float] = []
    text = "Memory on the node (IP: 10.0.0.7, ID: ab12) was 61.40GB used / 62.00GB limit"

    def end_at_once(one: Job) -> None:
        started.append(executor._widen(one).cpus)
        future: Future[object] = Future()
        future.set_exception(OutOfMemoryError(f"a page of text. {text} and more"))
        executor._end_task(one, future)

    monkeypatch.setattr(executor, "_start", end_at_once)
    executor.submit(job("succeed"))
    (outcome,) = collect(executor, 1).values()
    assert started == [1, 2, 4, WHOLE_NODE]
    assert "was lost 4 times" in (outcome.error or "")
    assert "memory ran out on node 10.0.0.7 (61.40GB of 62.00GB were used)." in (
        outcome.error or ""
    )


def test_after_memory_ran_out_no_job_waits_for_cpus_that_no_node_has(
    local_cluster: Cluster, tmp_path: Path
) -> None:
    """Also where a user asked for the CPUs of each job, which are waited for."""
    notes: list[str] = []
    place = Place(storage=str(tmp_path), encoder="none")
    executor = RayExecutor(perform, place, note=notes.append)
    one = job("succeed", resources=ResourceRequest(cpus=1, explicit=("cpus",)))
    for _ in range(Limits().retries):  # its last attempt gets a node for itself
        executor._losses.count(one.fingerprint, out_of_memory=True)
    executor._jobs[one.fingerprint] = one
    executor._idle_since = float("-inf")
    executor._say_what_is_waited_for(is_running=False)
    assert "evaluate a waits for 2 CPUs, which a node of the cluster has" in notes[0]
    executor.submit(one)
    assert collect(executor, 1, seconds=120)["evaluate-a"].ok
    large = one.resources.model_copy(update={"cpus": 16})  # of a node that is lost
    assert executor._choose_share(one.model_copy(update={"resources": large})).cpus == 16
    executor.stop()


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


@pytest.mark.slow
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
    monkeypatch.setattr(connecting, "ConnectionProbe", only_here.Probe)
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


@pytest.mark.slow
def test_trials_can_follow_trials_in_silence(
    executor: RayExecutor, capfd: pytest.CaptureFixture[str]
) -> None:
    """As a chain of fine-tunings does: the second is submitted when the first is done."""
    for name in ("first", "second"):
        executor.submit(job("succeed", name=name, stage="finetune"))
        assert collect(executor, 1)[f"finetune-{name}"].ok
    assert capfd.readouterr().out == ""


@pytest.mark.slow
def test_jobs_that_report_and_ask_lend_their_cpus_to_no_other(
    executor: RayExecutor, tmp_path: Path
) -> None:
    for name in "abcde":
        executor.submit(job("save", name=name))
    lives = tmp_path / "lives"
    assert eventually(lambda: lives.exists() and len(lives.read_text().splitlines()) == 2)
    time.sleep(15.0)  # each asks some seven times whether it must leave
    assert len(lives.read_text().splitlines()) == 2
    (tmp_path / "go").touch()
    assert all(outcome.ok for outcome in collect(executor, 5).values())


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


@pytest.mark.slow
def test_after_killed_drivers_and_workers_the_weights_are_the_same_to_the_bit(
    kill_and_resume: KillAndResume,
) -> None:
    assert kill_and_resume.killed.ok, kill_and_resume.killed.error
    assert kill_and_resume.killed.facts == kill_and_resume.undisturbed


@pytest.mark.slow
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


@pytest.mark.slow
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
