"""A storage that can only be read still answers; what would write says so in one sentence."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from speechft_ray.cli import main
from speechft_ray.core.records import Job, Place
from speechft_ray.stages.perform import perform
from speechft_ray.sweep.local import perform_safely


@pytest.fixture(scope="module")
def read_only(finished_storage: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Returns a copy of the finished storage on a file system that is mounted read-only."""
    folder = tmp_path_factory.mktemp("disk")
    if (
        os.getuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "tmpfs", str(folder)], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("no file system may be mounted here")
    with ExitStack() as stack:
        stack.callback(subprocess.run, ["umount", "-l", str(folder)], check=False)
        shutil.copytree(finished_storage, folder / "runs")
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        yield folder / "runs"


@pytest.mark.parametrize("verb", ["ls", "verify"])
def test_it_answers(read_only: Path, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--storage", str(read_only)]) == 0
    printed = capsys.readouterr()
    assert "small-sweep" in printed.out or verb == "verify"
    assert "Traceback" not in printed.err


@pytest.mark.parametrize("verb", [["verify", "--repair"], ["gc", "--yes"]])
def test_what_would_write_refuses(
    read_only: Path, verb: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*verb, "--storage", str(read_only)]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_job_refuses_before_it_works(read_only: Path) -> None:
    job = Job(stage="merge", fingerprint="0" * 16, label="merge", payload={})
    place = Place(storage=str(read_only), encoder="none")
    outcome = perform_safely(perform, job, place, lambda values: None)
    assert "cannot be written" in str(outcome.error) and outcome.traceback is None


def test_the_winner_is_exported(read_only: Path, tmp_path: Path) -> None:
    out = tmp_path / "encoder"
    arguments = ["export", "small-sweep", "--to", "hf", "--storage", str(read_only), str(out)]
    assert main(arguments) == 0
    assert (out / "config.json").is_file()
