"""A full disk is told from other errors, in the words of the libraries that write here."""

from __future__ import annotations

import errno
import re
import sqlite3
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import pytest
import torch
from safetensors import SafetensorError

from speechft_ray import cli
from speechft_ray.core.errors import DiskFull, StorageDown, UserError
from speechft_ray.core.full_disk import is_disk_full
from speechft_ray.core.records import Job, Outcome, Place
from speechft_ray.speech.checkpointing import save
from speechft_ray.sweep.local import perform_safely
from speechft_ray.sweep.plan import make_plan
from tests.sweep.fakes import FakeExecutor, FakeObserver, inputs, run_plan, store_at, sweep

FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    sqlite3.OperationalError("database or disk is full"),
]


@pytest.mark.parametrize("error", FULL, ids=repr)
def test_the_words_of_libraries(error: Exception) -> None:
    assert is_disk_full(error)
    caused = RuntimeError("it failed")
    caused.__cause__ = error
    assert is_disk_full(caused)


def test_a_state_that_torch_cannot_write_counts() -> None:
    with pytest.raises(UserError) as caught:
        save(Path("/dev/full/state"), 1, {"weight": torch.zeros(3)})
    assert not is_disk_full(caught.value)  # no folder there: another mistake
    write = torch.save

    def write_to_a_full_device(state: object, file: object) -> None:
        with Path("/dev/full").open("wb") as full:
            write(state, full)

    def save_state(job: Job, place: Place, report: object) -> dict[str, object]:
        with patch("torch.save", write_to_a_full_device), TemporaryDirectory() as folder:
            save(Path(folder), 1, {"weight": torch.zeros(3)})
        return {}

    job = next(iter(make_plan(sweep(), inputs()).jobs.values()))
    place = Place(storage="runs", encoder="none")
    outcome = perform_safely(save_state, job, place, lambda values: None)
    assert outcome.cannot_store == "disk full" and "cannot be saved in" in str(outcome.error)


def test_a_device_that_is_full_says_so() -> None:
    with pytest.raises(OSError) as caught, Path("/dev/full").open("wb", buffering=0) as file:
        file.write(b"x")
    assert is_disk_full(caught.value)


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "no"), ValueError("no space"), OSError()])
def test_other_errors_are_others(error: Exception) -> None:
    assert not is_disk_full(error)


@pytest.mark.parametrize(
    ("error", "mark", "raised", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space"), "disk full", DiskFull, "no space is left on node"),
        (StorageDown("the bucket is away"), "storage down", StorageDown, "on node .*: the bucket"),
    ],
)
def test_a_job_that_cannot_be_stored_is_marked_and_stops_the_run(
    tmp_path: Path, error: Exception, mark: str, raised: type[Exception], sentence: str
) -> None:
    def fill(job: Job, place: Place, report: object) -> dict[str, object]:
        raise error

    plan = make_plan(sweep(), inputs())
    job = next(iter(plan.jobs.values()))
    place = Place(storage=str(tmp_path), encoder="none")
    outcome = perform_safely(fill, job, place, lambda values: None)
    assert outcome.cannot_store == mark and re.search(sentence, str(outcome.error))
    assert "\n" not in str(outcome.error) and outcome.traceback is None

    class FullExecutor(FakeExecutor):
        def outcomes(self, timeout_seconds: float) -> list[Outcome]:
            if len(self.done) < 2:
                return super().outcomes(timeout_seconds)
            job = self.queue.pop(0)
            outcome = perform_safely(fill, job, place, lambda values: None)
            if mark == "disk full":  # as Tune reports what fails outside of the job
                text = "OSError: [Errno 28] No space left on device, no space is left on node a"
                outcome = outcome.model_copy(update={"cannot_store": "", "error": text})
            return [outcome]

    logged: list[Outcome] = []
    executor = FullExecutor(store_at(tmp_path))
    with pytest.raises(raised, match=sentence):
        run_plan(plan, executor.store, executor, FakeObserver(), logged.append, threading.Event())
    assert executor.stopped and len(executor.done) == 2
    assert all(outcome.ok for outcome in logged), "it is no failure of the job"


def test_the_command_line_says_it_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for error in (DiskFull("evaluate: no space"), FULL[0], FULL[3]):

        def fail(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(cli, "app", fail)
        assert cli.main(["run"]) == 75
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("speechft: stopped, because the disk is")
    monkeypatch.setattr(cli, "app", lambda *_, **__: (_ for _ in ()).throw(ValueError("a bug")))
    with pytest.raises(ValueError, match="a bug"):
        cli.main(["run"])
