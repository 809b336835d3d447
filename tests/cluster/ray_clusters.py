"""Ray clusters for tests: small, without a dashboard, and apart from any other Ray of this machine
and user."""

from __future__ import annotations

import atexit
import gc
import os
import secrets
import shutil
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import ray

from speechft_ray.cluster import connect as connecting
from speechft_ray.cluster.connect import Cluster, connect
from speechft_ray.core.records import Outcome
from speechft_ray.sweep.protocols import Executor

ROOT = Path(__file__).parents[2]
STORE_BYTES = 80 << 20
SECRETS = {"AWS_SECRET_ACCESS_KEY": "secret", "MLFLOW_TRACKING_PASSWORD": "secret"}
STALE = "127.0.0.1:1"


def collect(executor: Executor, count: int, seconds: float = 900.0) -> dict[str, Outcome]:
    """Returns so many outcomes by fingerprint. Fails when they take so long that they hang."""
    outcomes: dict[str, Outcome] = {}
    until = time.monotonic() + seconds
    while len(outcomes) < count:
        assert time.monotonic() < until, f"only {sorted(outcomes)} ended within {seconds} s"
        for outcome in executor.outcomes(0.2):
            assert outcome.fingerprint not in outcomes, f"{outcome.label} ended twice"
            outcomes[outcome.fingerprint] = outcome
    return outcomes


def eventually(true: Callable[[], bool], seconds: float = 900.0) -> bool:
    """Whether something becomes true before it must be taken for hanging."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if true():
            return True
        time.sleep(0.1)
    return False


@cache
def _folder() -> Path:
    # One for all tests of a process, and so is RAY_AUTH_MODE, which the first local cluster sets:
    # Ray keeps both.
    os.environ.pop("RAY_AUTH_MODE", None)
    folder = Path(
        tempfile.mkdtemp(prefix="sft", dir="/tmp")
    )  # sockets are made in it, with 108 characters at most
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / ".ray").mkdir()
    (folder / ".ray" / "auth_token").write_text(secrets.token_hex(32))
    return folder


@pytest.fixture(scope="module")
def ray_folder() -> Iterator[Path]:
    """A home with a token, and a temporary folder of Ray's own."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
            patch.delenv(name, raising=False)
        patch.setenv("RAY_TMPDIR", str(_folder()))
        patch.setenv("HOME", str(_folder()))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setattr(connecting, "DASHBOARD_PACKAGES", ("left_out_in_tests",))
        yield _folder()
    _forget_processes()


def _forget_processes() -> None:
    # Ray ends its processes without waiting for them, which Python remarks on whenever it collects
    # them.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="module")
def local_cluster(ray_folder: Path) -> Iterator[Cluster]:
    """A local cluster, started by a driver with secrets and a SIGTERM handler, where a crashed head
    left its address."""
    (ray_folder / "ray").mkdir(exist_ok=True)
    (ray_folder / "ray" / "ray_current_cluster").write_text(STALE)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        before = signal.getsignal(signal.SIGTERM)
        cluster = connect("local", cpus=2, store_bytes=STORE_BYTES)
        assert signal.getsignal(signal.SIGTERM) is before
        yield cluster
        cluster.close()
        assert not ray.is_initialized()
