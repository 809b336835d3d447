"""A result counts once the driver's own store has it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from speechft_ray.commands import executors
from speechft_ray.commands.executors import OnDemandExecutor
from speechft_ray.core.records import Job, Outcome, Place
from speechft_ray.core.store import Store
from speechft_ray.sweep.protocols import Progress
from speechft_ray.sweep.scheduler import JobScheduler
from tests.sweep.fakes import FakeObserver

JOB = Job(stage="merge", fingerprint="abc", label="merge a", payload={})


class Boast:
    """Says at once that every job is done."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def submit(self, job: Job) -> None:
        self.jobs.append(job)

    def outcomes(self, timeout_seconds: float) -> list[Outcome]:
        jobs, self.jobs = self.jobs, []
        return [
            Outcome(
                stage=job.stage,
                fingerprint=job.fingerprint,
                label=job.label,
                error="failed" if job.payload else None,
            )
            for job in jobs
        ]

    def slots(self, job: Job) -> int:
        return 1

    def progress(self) -> Mapping[str, Progress]:
        return {}

    def stop(self) -> None:
        """Nothing runs."""


class Busy(Boast):
    """Has two slots and ends no job."""

    def outcomes(self, timeout_seconds: float) -> list[Outcome]:
        return []

    def slots(self, job: Job) -> int:
        return 2


@pytest.fixture
def executor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OnDemandExecutor:
    monkeypatch.setattr(executors, "open_executor", lambda *arguments: Boast())
    place = Place(storage=str(tmp_path), encoder="none")
    return OnDemandExecutor(None, place, print)


def test_a_result_is_waited_for(executor: OnDemandExecutor, tmp_path: Path) -> None:
    executor.submit(JOB)
    assert executor.outcomes(0) == executor.outcomes(0) == []
    with Store(tmp_path).publish("merge", "abc", {}):
        pass
    (outcome,) = executor.outcomes(0)
    assert outcome.ok
    assert executor.outcomes(0) == []


def test_a_result_that_never_appears_is_an_error(
    executor: OnDemandExecutor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(executors, "CONFIRM_SECONDS", 0.0)
    executor.submit(JOB)
    (outcome,) = executor.outcomes(0)
    assert f"{tmp_path / 'merge' / 'abc'} does not appear here" in str(outcome.error)


def test_an_error_needs_no_result(executor: OnDemandExecutor) -> None:
    executor.submit(JOB.model_copy(update={"payload": {"fails": True}}))
    (outcome,) = executor.outcomes(0)
    assert outcome.error == "failed"


class Ledger:
    """Claims that another driver holds until they are given up."""

    def __init__(self, *others: str) -> None:
        self.others, self.released = set(others), list[str]()

    def take(self, job: Job) -> bool:
        return job.fingerprint not in self.others

    def release(self, key: str) -> None:
        self.released.append(key)

    def release_all(self) -> None:
        self.released.append("all")


def test_a_unit_of_another_sweep_is_waited_for_and_not_computed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    boast, ledger = Boast(), Ledger("theirs", "failed")
    monkeypatch.setattr(executors, "open_executor", lambda *arguments: boast)
    monkeypatch.setattr(executors, "LOOK_SECONDS", 0.0)
    place = Place(storage=str(tmp_path), encoder="none")
    executor = OnDemandExecutor(None, place, print, claims=ledger)  # type: ignore[arg-type]
    theirs, failed, own = (
        JOB.model_copy(update={"fingerprint": key, "stage": "finetune"})
        for key in ("theirs", "failed", "own")
    )
    for job in (theirs, failed):
        executor.submit(job)
    assert executor.outcomes(0) == [] and not boast.jobs, "nothing is opened for a job that waits"
    with Store(tmp_path).publish("finetune", "own", {}):
        pass
    executor.submit(own)
    assert [outcome.fingerprint for outcome in executor.outcomes(0)] == ["own"]
    assert ledger.released == ["own"]
    with Store(tmp_path).publish("finetune", "theirs", {"loss": 1.5}):
        pass
    ledger.others.clear()  # the other sweep has ended; one of its units failed there
    (outcome,) = executor.outcomes(0)
    assert outcome.fingerprint == "theirs" and outcome.facts["loss"] == 1.5
    assert [job.fingerprint for job in boast.jobs] in ([], ["failed"])
    assert set(ledger.released) == {"own", "theirs"}
    executor.stop()
    assert ledger.released[-1] == "all"


def test_units_of_another_sweep_take_no_slot(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of a search, which has as many evaluations submitted as there are slots, and one more."""
    boast, theirs = Busy(), [f"theirs{number}" for number in range(3)]
    monkeypatch.setattr(executors, "open_executor", lambda *arguments: boast)
    place = Place(storage=str(tmp_path), encoder="none")
    ledger = Ledger(*theirs)
    executor = OnDemandExecutor(None, place, print, claims=ledger)  # type: ignore[arg-type]
    scheduler = JobScheduler(
        executor, FakeObserver(), lambda outcome: None, threading.Event(), by_priority=True
    )
    keys = [*theirs, *(f"free{number}" for number in range(5))]
    scheduler.add(
        {key: Job(stage="evaluate", fingerprint=key, label=key, payload={}) for key in keys}
    )
    for _ in range(2):  # the first opens the executor
        scheduler.poll()
    assert [job.fingerprint for job in boast.jobs] == ["free0", "free1", "free2"]
    executor.stop()
