"""SIGTERM where it used to end badly: while Ray starts, and with an MLflow that hangs."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from tests.e2e.small_world import SMALL, complete, places, start, write_space

pytestmark = pytest.mark.slow

KILLED_AFTER_SECONDS = 30.0
"""Slurm (``KillWait``) and Kubernetes (``terminationGracePeriodSeconds``) kill after that time."""


def wait_for(driver: subprocess.Popen[str], happens: Callable[[], bool]) -> None:
    while not happens():
        assert driver.poll() is None, driver.communicate()[1]
        time.sleep(0.02)


def terminate(driver: subprocess.Popen[str]) -> float:
    """Sends SIGTERM, checks that the driver ends resumably, and returns how long it took."""
    begin = time.monotonic()
    driver.send_signal(signal.SIGTERM)
    _, errors = driver.communicate(timeout=900)
    assert driver.returncode == 75, errors
    assert "run the same command again" in errors and "Traceback" not in errors, errors
    return time.monotonic() - begin


def test_while_ray_starts(tmp_path: Path) -> None:
    driver = start("sweep_alpha.py", *places(tmp_path))

    def ray_starts() -> bool:
        children = psutil.Process(driver.pid).children(recursive=True)
        return any("gcs_server" in child.name() for child in children)

    wait_for(driver, ray_starts)
    terminate(driver)


def test_in_process_while_a_long_fine_tuning_runs(tmp_path: Path) -> None:
    long = [{**run, "updates": 1_000_000} for run in SMALL["finetune"]]
    space = write_space(tmp_path, finetune=long)
    driver = start("sweep_alpha.py", *places(tmp_path, space), "--in-process")
    wait_for(driver, lambda: any((tmp_path / "runs" / "work").glob("finetune-*/*")))
    assert terminate(driver) < KILLED_AFTER_SECONDS
    assert any((tmp_path / "runs" / "work").glob("finetune-*/*"))


def test_with_an_mlflow_that_hangs(tmp_path: Path) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(100)  # connections are taken and never answered
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        driver = start("sweep_alpha.py", *places(tmp_path), "--in-process", "--mlflow", address)
        wait_for(driver, lambda: bool(complete(tmp_path / "runs")))
        assert terminate(driver) < KILLED_AFTER_SECONDS
