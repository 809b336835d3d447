"""A run in this process ends when it is stopped, and not when its job has ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from speechft_ray.core.errors import Interrupted
from speechft_ray.core.preemption import leave_if_asked, must_leave
from speechft_ray.core.records import Job, Place
from speechft_ray.sweep import local
from speechft_ray.sweep.local import LocalExecutor
from speechft_ray.sweep.protocols import ReportProgress

JOB = Job(stage="finetune", fingerprint="a", label="finetune a", payload={})
STEPS = 1000


class Work:
    """A job of many steps that is stopped in one of them."""

    def __init__(self, stop_at: int, *, saves: bool = True) -> None:
        self.stop = threading.Event()
        self.stop_at, self.saves = stop_at, saves
        self.done = self.saved = 0

    def perform(self, job: Job, place: Place, report: ReportProgress) -> Mapping[str, Any]:
        """Does the steps; looks as fine-tuning does whether it must save and leave."""
        for self.done in range(1, STEPS + 1):
            if self.done == self.stop_at:
                self.stop.set()
            report({"done": self.done, "total": STEPS})
            if self.saves and must_leave():
                self.saved = self.done
                leave_if_asked()
            time.sleep(0.001)
        return {}

    def run(self, folder: Path) -> list[str | None]:
        """Performs it and returns the errors of its outcomes."""
        place = Place(storage=str(folder), encoder="none")
        executor = LocalExecutor(self.perform, place, stop=self.stop)
        executor.submit(JOB)
        return [outcome.error for outcome in executor.outcomes(0.0)]


def test_a_job_saves_its_state_and_stops_at_once(tmp_path: Path) -> None:
    work = Work(stop_at=5)
    with pytest.raises(Interrupted):
        work.run(tmp_path)
    assert work.done == work.saved == 5
    assert not must_leave()


def test_a_job_that_saves_nothing_stops_at_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "SAVE_SECONDS", 0.05)
    work = Work(stop_at=5, saves=False)
    with pytest.raises(Interrupted):
        work.run(tmp_path)
    assert 5 < work.done < STEPS


def test_a_job_that_nobody_stops_ends(tmp_path: Path) -> None:
    assert Work(stop_at=0).run(tmp_path) == [None]
