"""A result counts once the driver's own store has it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from speechft_ray.commands import executors
from speechft_ray.commands.executors import OnDemandExecutor
from speechft_ray.core.records import Job, Outcome, Place
from speechft_ray.core.store import Store
from speechft_ray.sweep.protocols import Progress

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
