"""Sweeps on a real head with a token: submitted, left, stopped, gone on with, two at once."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.small_world import REPOSITORY, SMALL, complete, environment, write_space

pytestmark = pytest.mark.slow

SECONDS = 3000.0
PORTS = (
    *("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port"),
    *("metrics-export-port", "runtime-env-agent-port", "ray-client-server-port"),
)


def find_ports(count: int) -> list[int]:
    """Returns free ports below those that the kernel hands out, which other programs take between
    here and the start of Ray."""
    ports: list[int] = []
    number = 20_000 + os.getpid() % 1000 * 10
    while len(ports) < count:
        number += 1
        with contextlib.suppress(OSError), socket.socket() as one:
            one.bind(("", number))
            ports.append(number)
    return ports


class Head:
    """A head of two CPUs with a token, and commands of a machine that is not part of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.token = secrets.token_hex(32)
        ports = dict(zip(PORTS, find_ports(len(PORTS)), strict=True))
        self.cluster = f"http://127.0.0.1:{ports['dashboard-port']}"
        ray = str(Path(sys.executable).with_name("ray"))
        options = [f"--{name}={port}" for name, port in ports.items()]
        command = [
            *(ray, "start", "--head", "--block", "--num-cpus=2", "--num-gpus=0"),
            *("--dashboard-host=127.0.0.1", f"--temp-dir={folder}", *options),
            "--object-store-memory=80000000",
        ]
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        patience = {"RAY_raylet_start_wait_time_s": "600"}  # 30 s are too few for a busy machine
        variables = environment(
            **token, **patience, HOME=str(folder), PATH=path, RAY_USAGE_STATS_ENABLED="0"
        )
        variables.pop("PYTHONPATH", None)  # the package is shipped
        self.log = (folder / "head.log").open("w")
        self.process = subprocess.Popen(
            command, env=variables, stdout=self.log, stderr=self.log, start_new_session=True
        )

    def call(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Runs ``speechft`` for the cluster to its end."""
        command = [sys.executable, "-m", "speechft_ray", *map(str, arguments)]
        variables = environment(
            RAY_AUTH_TOKEN=self.token, HOME=str(self.folder), PYTHONPATH=str(REPOSITORY)
        )
        return subprocess.run(
            [*command, "--cluster", self.cluster],
            env=variables,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    def wait(self) -> None:
        """Waits until the dashboard answers."""
        until = time.monotonic() + 600
        while (done := self.call("list")).returncode != 0:
            is_alive = self.process.poll() is None
            assert is_alive and time.monotonic() < until, f"{done.stderr}\n{self.read_log()}"
            time.sleep(2)

    def read_log(self) -> str:
        """Returns what Ray printed when it started, and whether it still runs."""
        return f"{(self.folder / 'head.log').read_text()[-3000:]}\nexit code {self.process.poll()}"

    def jobs(self) -> dict[str, Any]:
        """Returns what `speechft list` has, by job."""
        listing = self.call("list", "--json")
        return {job["id"]: job for job in json.loads(listing.stdout)["jobs"]}

    def close(self) -> None:
        """Ends the head and all of its processes."""
        for number, seconds in ((signal.SIGTERM, 30), (signal.SIGKILL, 10)):
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(self.process.pid, number)
                self.process.wait(seconds)
        self.log.close()


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="sft", dir="/tmp"))  # paths of sockets are short
    started = Head(folder)
    try:
        started.wait()
        yield started
    finally:
        started.close()
        shutil.rmtree(folder, ignore_errors=True)


def test_a_sweep_is_left_stopped_and_gone_on_with(head: Head, tmp_path: Path) -> None:
    storage = tmp_path / "runs"
    submit = ("submit", write_space(tmp_path), "--storage", storage, "--cpu")
    done = head.call(*submit)
    assert done.stdout.startswith("job small: sweep small in "), done.stderr + head.read_log()
    until = time.monotonic() + SECONDS
    while not (storage / "evaluate").is_dir() or len(complete(storage)) < 5:
        assert time.monotonic() < until, head.call("logs", "small").stdout
        time.sleep(1)
    assert "job small: STOPPED" in head.call("stop", "small").stdout
    before = complete(storage)
    followed = head.call("logs", "small", "--follow")
    assert followed.returncode == 75
    assert "speechft: stopped. Everything finished is kept" in followed.stdout
    assert head.call("logs", "small", "--follow").stdout == head.call("logs", "small").stdout
    again = head.call(*submit, "--follow")
    assert again.returncode == 0, again.stdout
    after = complete(storage)
    assert {key: after[key] for key in before} == before, "nothing that was finished is done again"
    assert len(after) > len(before)
    states = {key: (job["state"], job["exit_code"]) for key, job in head.jobs().items()}
    assert states == {"small": ("STOPPED", 75), "small-2": ("SUCCEEDED", 0)}


def test_two_sweeps_compute_their_fine_tuning_once(head: Head, tmp_path: Path) -> None:
    storage = tmp_path / "runs"
    for name, alpha in (("first", 0.25), ("second", 0.5)):
        space = write_space(
            tmp_path / name, name=name, merge=[{"alpha": alpha}], evaluate=SMALL["evaluate"][1:]
        )
        done = head.call("submit", space, "--storage", storage, "--cpu")
        assert done.returncode == 0, done.stderr
    logs = {}
    for name in ("first", "second"):
        followed = head.call("logs", name, "--follow")
        assert followed.returncode == 0, followed.stdout
        logs[name] = followed.stdout
    trials = [path.name for path in (storage / "tune").glob("*/*seed*")]
    assert len(trials) == len({re.sub(r"-[0-9a-f_]+$", "", name) for name in trials}) == 2, trials
    assert any("is computed by another sweep" in log for log in logs.values())
    assert not list((storage / "claims").iterdir())


def test_a_wrong_space_ends_the_job_with_its_exit_code(head: Head, tmp_path: Path) -> None:
    """It is right here, and on the cluster there is no such encoder."""
    space = write_space(tmp_path, name="wrong")
    done = head.call(
        "submit", space, "--storage", tmp_path / "runs", "--encoder", "/no/encoder.pt", "--follow"
    )
    assert done.returncode == 2, done.stdout
    assert "/no/encoder.pt" in done.stdout
