"""The MLflow page in a real browser: the parent run, its children and their scores by alpha."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib.image
import mlflow
import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest

from speechft_ray.sweep.protocols import EncoderRow, SweepEnd, SweepInfo
from speechft_ray.tracking.mlflow import MlflowTracker
from tests.e2e.browser import BROWSER, FLAGS, needs_browser
from tests.e2e.small_world import environment

pytestmark = needs_browser

START_SECONDS = 900.0
LOOK_SECONDS = 900.0


class Server(NamedTuple):
    """A running MLflow page and the database behind it."""

    address: str
    uri: str
    page: str
    """What `speechft ui` prints."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An MLflow page on loopback over a sweep with one parent and three children."""
    root = tmp_path_factory.mktemp("mlflow")
    tracker = MlflowTracker(None, root)
    tracker.start(SweepInfo("0123456789abcdef", "alpha", {"encoder": "tiny_hubert"}))
    for alpha, score in ((0.0, 610.0), (0.25, 655.0), (1.0, 590.0)):
        params: dict[str, str | float | int] = {
            "alpha": alpha,
            "method": "linear",
            "finetune": "phones",
            "seed": 0,
        }
        tracker.log_encoder(
            EncoderRow(
                key=f"key-{alpha}",
                title=f"linear alpha={alpha:g}",
                params=params,
                test={"score": score, "pr.per": 30.0},
                complete=True,
            )
        )
    tracker.finish(
        SweepEnd("finished", None, {"linear phones": [(0.0, 610.0), (0.25, 655.0), (1.0, 590.0)]})
    )
    command = [sys.executable, "-m", "speechft_ray", "ui", str(root)]
    with (root / "ui.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment())
    try:
        page = _wait_for_page(process, root / "ui.log")
        yield Server(page.partition("/#/")[0], f"sqlite:///{root}/mlflow.db", page)
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) == 2  # the server and its one worker: no executor of jobs
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=900) == 0
        assert psutil.wait_procs(children, timeout=60)[1] == []
    finally:
        process.kill()


def _wait_for_page(process: subprocess.Popen[bytes], log: Path) -> str:
    """Returns the address that the command prints once MLflow answers."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if match := re.search(r"^alpha: (http\S+)$", log.read_text(), re.MULTILINE):
            return match[1]
        time.sleep(0.5)
    pytest.fail(f"speechft ui did not start: {log.read_text()[-2000:]}")


def look(address: str, folder: Path, *flags: str) -> str:
    """Opens a page, lets it load what it asks the server for, and returns what the browser
    prints."""
    command = [str(BROWSER), *FLAGS, "--window-size=1500,1200", "--virtual-time-budget=60000"]
    profile = f"--user-data-dir={folder / 'profile'}"
    return subprocess.run(
        [*command, profile, *flags, address],
        check=True,
        capture_output=True,
        text=True,
        timeout=900,
    ).stdout


def page_text(address: str, folder: Path, awaited: str) -> str:
    """Returns the text of a page, also as a picture that must not be blank.

    The page loads in pieces, and on a busy machine the browser may look too early: it looks again
    until it finds ``awaited``, which ``LOOK_SECONDS`` only ends where the page never has it.
    """
    deadline = time.monotonic() + LOOK_SECONDS
    dom = look(address, folder, "--dump-dom")
    while awaited not in dom and time.monotonic() < deadline:
        dom = look(address, folder, "--dump-dom")
    picture = folder / "page.png"
    look(address, folder, f"--screenshot={picture}")
    pixels = np.asarray(matplotlib.image.imread(picture))[..., :3]
    assert pixels.shape[:2] == (1200, 1500)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100
    return re.sub(r"<[^>]+>", " ", dom)


def runs(server: Server) -> tuple[str, list[str]]:
    """Returns the ids of the parent and of its children."""
    all_runs = mlflow.MlflowClient(server.uri).search_runs(["1"])
    parents = [run.info.run_id for run in all_runs if "mlflow.parentRunId" not in run.data.tags]
    return parents[0], [run.info.run_id for run in all_runs if run.info.run_id not in parents]


def test_the_printed_page_has_the_best_encoder_first_and_what_varies(
    server: Server, tmp_path: Path
) -> None:
    text = page_text(server.page, tmp_path, "matching runs")
    assert re.search(r"3\s+matching runs", text)  # without the parent
    table = text[text.index("Run Name") :]
    assert re.findall(r"\b(655|610|590)\b", table) == ["655", "610", "590"]
    for name in ("alpha", "method", "score", "pr.per"):
        assert name in table


@pytest.mark.slow
def test_runs_are_compared_by_alpha(server: Server, tmp_path: Path) -> None:
    children = urllib.parse.quote(json.dumps(runs(server)[1]))
    text = page_text(
        f"{server.address}/#/compare-runs?runs={children}&experiments=%5B%221%22%5D",
        tmp_path,
        "Comparing 3 Runs",
    )
    assert "Comparing 3 Runs" in text
    for name in ("a=0 linear", "a=0.25 linear", "a=1 linear"):
        assert name in text
    assert "655" in text


@pytest.mark.slow
def test_the_parent_shows_the_curve(server: Server, tmp_path: Path) -> None:
    text = page_text(
        f"{server.address}/#/experiments/1/runs/{runs(server)[0]}/model-metrics",
        tmp_path,
        "score_by_alpha",
    )
    assert "score_by_alpha" in text
