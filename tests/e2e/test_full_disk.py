"""A disk that fills while a sweep runs: one sentence, exit code 75, and the command goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.small_world import SMALL, manifests, run, write_space

SPACE = {
    "finetune": [{**SMALL["finetune"][0], "seed": 0}],
    "evaluate": [SMALL["evaluate"][1]],
    "score": {"zero": "measured", "topline": {"sid.accuracy": 100}},
}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a file system of so many bytes; only root may."""
    with ExitStack() as stack:

        def mount(size: int) -> Path:
            folder = tmp_path / "disk"
            folder.mkdir()
            command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
            if os.getuid() or subprocess.run(command, capture_output=True, check=False).returncode:
                pytest.skip("no file system may be mounted here")
            stack.callback(subprocess.run, ["umount", "-l", str(folder)], check=False)
            return folder

        yield mount


@pytest.mark.slow
@pytest.mark.parametrize("executor", [["--in-process"], []], ids=["in-process", "ray"])
def test_a_full_disk_stops_resumably_with_one_sentence(
    tmp_path: Path, small_disk: Callable[[int], Path], executor: list[str]
) -> None:
    space = write_space(tmp_path, **SPACE)
    whole = tmp_path / "whole"
    arguments: list[str | Path] = ["--space", space, "--mlflow", "http://127.0.0.1:9"]
    where: list[str | Path] = ["--storage", whole / "runs", "--report", whole / "report"]
    assert run("sweep_alpha.py", *arguments, *where, "--in-process").returncode == 0
    encoder = next((whole / "runs" / "finetune").glob("*/encoder.safetensors")).stat().st_size
    corpora = sum(file.stat().st_size for file in (whole / "runs" / "corpora").rglob("*"))
    # Corpora and the fine-tuning fit, the merges do not.
    disk = small_disk(corpora + int(2.5 * encoder) + 2**20)
    where = ["--storage", disk / "runs", "--report", tmp_path / "report"]
    done = run("sweep_alpha.py", *arguments, *where, *executor)
    assert done.returncode == 75, done.stderr[-3000:]
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("speechft: stopped, because the disk is full:") and "again" in last
    shutil.copytree(disk / "runs", tmp_path / "runs")
    where = ["--storage", tmp_path / "runs", "--report", tmp_path / "report"]
    again = run("sweep_alpha.py", *arguments, *where, "--in-process")
    assert again.returncode == 0, again.stderr[-3000:]
    assert manifests(tmp_path / "runs") == manifests(whole / "runs")
    table = (tmp_path / "report" / "table.csv").read_bytes()
    assert table == (whole / "report" / "table.csv").read_bytes()
