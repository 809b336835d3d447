"""The MLflow page in a real browser: the parent with its children, and their scores by alpha, as a person sees them."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from speechft_ray.sweep.protocols import EncoderRow, SweepInfo
from speechft_ray.tracking.mlflow import MlflowTracker
from tests.e2e.small_world import environment
from tests.e2e.test_pages import BROWSER, FLAGS

pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs chromium (Debian: apt-get install chromium)")

START_SECONDS = 90.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An MLflow page on loopback over a sweep with one parent and three children."""
    root = tmp_path_factory.mktemp("mlflow")
    tracker = MlflowTracker(None, root)
    tracker.start(SweepInfo("0123456789abcdef", "alpha", {"encoder": "tiny_hubert"}))
    for alpha, score in ((0.0, 610.0), (0.25, 655.0), (1.0, 590.0)):
        params: dict[str, str | float | int] = {"alpha": alpha, "method": "linear", "finetune": "phones", "seed": 0}
        tracker.encoder(EncoderRow(f"key-{alpha}", f"linear alpha={alpha:g}", params, {"score": score, "pr.per": 30.0}, True))
    tracker.finish(None, [(0.0, 610.0), (0.25, 655.0), (1.0, 590.0)], "finished")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"sqlite:///{root}/mlflow.db"
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(port)]
    with (root / "server.log").open("w") as log:
        process = subprocess.Popen([*command, "--workers", "1"], stdout=log, stderr=log, env=environment())
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(address, process, root / "server.log")
        yield address
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"mlflow ui did not start: {log.read_text()[-2000:]}")


def look(address: str, folder: Path, *flags: str) -> str:
    command = [
        str(BROWSER),
        *FLAGS,
        "--window-size=1500,900",
        "--virtual-time-budget=30000",
        f"--user-data-dir={folder / 'profile'}",
    ]
    return subprocess.run([*command, *flags, address], check=True, capture_output=True, text=True, timeout=150).stdout


def test_parent_and_children_are_listed(server: str, tmp_path: Path) -> None:
    dom = look(f"{server}/#/experiments/1/runs?viewStateShareKey=&compareRunsMode=TABLE", tmp_path, "--dump-dom")
    assert "alpha" in dom
    for title in ("linear alpha=0 ", "linear alpha=0.25", "linear alpha=1"):
        assert title.strip() in dom


def test_the_picture_is_not_blank(server: str, tmp_path: Path) -> None:
    target = tmp_path / "mlflow.png"
    look(f"{server}/#/experiments/1/runs", tmp_path, f"--screenshot={target}")
    assert target.stat().st_size > 20_000
