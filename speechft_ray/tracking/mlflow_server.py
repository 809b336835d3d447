"""Runs MLflow on loopback for one person: one worker, and no executor of background jobs, which
takes most of the memory of ``mlflow ui``."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import suppress
from types import TracebackType

from speechft_ray.core.errors import UserError, printable

HOST = "127.0.0.1"
PORT = 5000
"""The port that MLflow itself prefers."""
START_SECONDS = 180.0
STOP_SECONDS = 10.0
POLL_SECONDS = 0.2

SETTINGS = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
"""Environment variables of the server (mlflow ``environment_variables.py``, 3.17)."""


def choose_port(port: int | None) -> int:
    """Returns a free port of loopback: the one asked for, else 5000, else any. Raises ``UserError``
    where the one asked for is in use."""
    for choice in [PORT, 0] if port is None else [port]:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, choice))
                return int(probe.getsockname()[1])
            except OSError as error:
                reason = error.strerror
    raise UserError(
        f"port {port or 'any'} of {HOST} cannot be used ({reason}): leave --port out for a free "
        "one."
    )


class MlflowServer:
    """A server over a database, which ends with its context: it and all its processes."""

    def __init__(self, uri: str, port: int) -> None:
        self.address = f"http://{HOST}:{port}"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `__exit__`
        command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port)]
        self._process = subprocess.Popen(
            [*command, "--workers", "1"],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            # By the environment, since the URI may have a password, which `ps` would show.
            env={**os.environ, **SETTINGS, "MLFLOW_BACKEND_STORE_URI": uri},
            start_new_session=True,  # a process group of its own, to be ended as a whole
        )

    def __enter__(self) -> MlflowServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=STOP_SECONDS)
                break
        # Those that outlived their parent.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._log.close()

    def wait_until_ready(self, stop: threading.Event) -> None:
        """Returns when the server answers, or ``stop`` is set. Raises ``UserError`` where it ends
        instead, or takes three minutes."""
        until = time.monotonic() + START_SECONDS
        while not stop.wait(POLL_SECONDS) and not self._is_healthy():
            if time.monotonic() > until:
                raise UserError(
                    f"MLflow did not answer within {START_SECONDS:g} s: {self._read_end()}"
                )

    def wait(self, stop: threading.Event) -> None:
        """Returns when ``stop`` is set. Raises ``UserError`` where the server ends before."""
        while not stop.wait(POLL_SECONDS):
            self._check_running()

    def _is_healthy(self) -> bool:
        self._check_running()
        try:
            with urllib.request.urlopen(f"{self.address}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _check_running(self) -> None:
        code = self._process.poll()
        if code is not None:
            raise UserError(f"MLflow ended with code {code}: {self._read_end()}")

    def _read_end(self) -> str:
        """Returns the last line that the server printed."""
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return printable(lines[-1].strip()[:300]) if lines else "it printed nothing."
