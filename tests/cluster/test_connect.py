"""Reaching clusters, and the sentences for those that cannot be reached."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from speechft_ray.cluster import connect as connecting
from speechft_ray.cluster.connect import Cluster, connect
from speechft_ray.cluster.environment import (
    ALLOCATOR,
    ALLOWED_ENVIRONMENT,
    IDLE_WORKERS,
    WORKER_ENVIRONMENT,
    restrict_environment,
    select_variables,
)
from speechft_ray.core.errors import UserError
from tests.cluster.ray_clusters import ROOT, eventually, local_cluster, ray_folder

__all__ = ["local_cluster", "ray_folder"]  # fixtures

DRIVER = """
import sys
from pathlib import Path
from speechft_ray.cluster import connect as connecting
from speechft_ray.cluster.executor import RayExecutor
from speechft_ray.core.records import Place
from tests.cluster.worker_jobs import job, perform
connecting.DASHBOARD_PACKAGES = ("left_out_in_tests",)
cluster = connecting.connect("local", cpus=2, store_bytes=80 << 20)
executor = RayExecutor(perform, Place(storage=sys.argv[1], encoder="none"), cluster=cluster)
executor.submit(job("wait", stage="finetune"))
executor.submit(job("wait"))
while True:
    executor.outcomes(1.0)
"""

HEAD_WITHOUT_TOKEN = """
import sys
from ray.cluster_utils import Cluster
size = dict(num_cpus=1, object_store_memory=80 << 20, include_dashboard=False)
nodes = Cluster(initialize_head=True, head_node_args=size)
print(nodes.address, flush=True)
sys.stdin.read()
nodes.shutdown()
"""
VISITOR = """
import sys
from speechft_ray.cluster import connect as connecting
from speechft_ray.core.errors import UserError
connecting.PROBE_SECONDS = 900.0  # also on a busy machine, which has its answer late
try:
    print(connecting.connect(sys.argv[1]).nodes)
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("ray://head:10001", "Ray Client.*--address auto"),
        ("head", "must be `local`, `auto` or HOST:PORT"),
        ("head:99999", "must be `local`, `auto` or HOST:PORT"),
        ("http://head:6379", "must be `local`, `auto` or HOST:PORT"),
    ],
)
def test_addresses_that_cannot_be_are_refused(address: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        connect(address)


def fail_to_connect(*arguments: Any, **options: Any) -> None:
    """Stands for Ray's own attempt, which takes half a minute."""
    pytest.fail("Ray was asked to connect")


def test_a_head_that_is_not_there_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.init", fail_to_connect)
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(
            UserError, match=r"no Ray head answers at `127.0.0.1:\d+`.*`--address local`"
        ):
            connect(f"127.0.0.1:{taken.getsockname()[1]}")


def test_no_running_cluster_has_two_ways_out(
    ray_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray also looks through the processes of this machine, where somebody else's cluster may run.
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", cache(lambda: set()))
    with pytest.raises(UserError, match=r"`ray start --head`.*`--address local`"):
        connect("auto")


def test_a_cluster_that_crashed_is_said_at_once(
    ray_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
    monkeypatch.setattr("ray.init", fail_to_connect)
    with pytest.raises(UserError, match=r"no Ray head answers at `127\.0\.0\.1:1`"):
        connect("auto")


def test_an_environment_that_says_local_means_a_local_cluster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")

    def refuse(**options: object) -> None:
        raise RuntimeError("not here")

    monkeypatch.setattr(connecting, "_start_here", refuse)
    with pytest.raises(UserError, match=r"local Ray cluster could not be started.*not here"):
        connect("auto")


def test_a_local_cluster_says_what_it_has(local_cluster: Cluster) -> None:
    assert (local_cluster.cpus, local_cluster.gpus, local_cluster.nodes, local_cluster.local) == (
        2,
        0,
        1,
        True,
    )
    assert local_cluster.dashboard is None


def test_a_local_cluster_listens_on_loopback_alone(local_cluster: Cluster) -> None:
    psutil = pytest.importorskip("psutil")
    driver = psutil.Process()
    places = {
        (process.name(), connection.laddr.ip.removeprefix("::ffff:"))
        for process in (driver, *driver.children(recursive=True))
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert {"gcs_server", "raylet"} <= {name for name, _ in places}
    assert {place for _, place in places} <= {"127.0.0.1", "::1"}


@pytest.mark.parametrize("by", ["auto", "address"])
def test_another_process_joins_a_local_cluster(local_cluster: Cluster, by: str) -> None:
    """Ray itself would look for it at the outer address of this machine."""
    address = local_cluster.address if by == "address" else "auto"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": local_cluster.address}
    command = [sys.executable, "-c", VISITOR, address]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.stdout == "1\n", done.stderr


def test_the_token_of_a_local_cluster_is_for_its_owner_only(
    local_cluster: Cluster, ray_folder: Path
) -> None:
    assert (ray_folder / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600


def test_connecting_twice_is_a_plain_error(local_cluster: Cluster) -> None:
    with pytest.raises(UserError, match=r"could not be started.*twice"):
        connect("local", cpus=1)


@pytest.mark.parametrize(
    "name",
    ["AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_TOKEN", "WANDB_API_KEY", "HF_TOKEN", "GITHUB_TOKEN"],
)
def test_credentials_are_not_passed_on(name: str) -> None:
    assert ALLOWED_ENVIRONMENT.fullmatch(name) is None


def test_a_local_cluster_starts_in_an_environment_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("GITHUB_TOKEN", "secret")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    before = dict(os.environ)
    with restrict_environment():
        inside = dict(os.environ)
    assert inside.items() >= WORKER_ENVIRONMENT.items()
    assert inside.items() >= IDLE_WORKERS.items()
    assert inside.items() >= ALLOCATOR.items()
    assert "GITHUB_TOKEN" not in inside
    assert dict(os.environ) == before


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_an_allocator_that_a_user_chose_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "max_split_size_mb:512")
    with restrict_environment():
        inside = dict(os.environ)
    chosen = {key: value for key, value in inside.items() if key.endswith("ALLOC_CONF")}
    assert chosen == {name: "max_split_size_mb:512"}
    assert not ALLOCATOR.keys() & select_variables().keys()


def test_what_a_dashboard_lacks_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    packages = ("json", "no_such_package_1", "no_such_package_2.part", "json.decoder")
    monkeypatch.setattr(connecting, "DASHBOARD_PACKAGES", packages)
    assert connecting.missing_for_dashboard() == ["no_such_package_1", "no_such_package_2.part"]


def test_nothing_goes_on_after_the_driver_was_killed(ray_folder: Path, tmp_path: Path) -> None:
    beats = [tmp_path / "beat-evaluate-a", tmp_path / "beat-finetune-a"]
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )

    def all_beat() -> bool:
        assert driver.poll() is None, driver.returncode
        return all(path.exists() for path in beats)

    try:
        assert eventually(all_beat)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()

    def still() -> bool:
        before = [path.read_text() for path in beats]
        time.sleep(1.5)
        return [path.read_text() for path in beats] == before

    assert eventually(still)


def test_a_cluster_that_would_end_every_actor_is_seen_through(ray_folder: Path) -> None:
    """Ray makes a token on the first local run; a head that was started before it knows none."""
    python = [sys.executable, "-c"]
    without = os.environ | {"RAY_AUTH_MODE": "disabled"}
    pipes: dict[str, Any] = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.DEVNULL,
    }
    with subprocess.Popen(
        [*python, HEAD_WITHOUT_TOKEN], cwd=ROOT, env=without, text=True, **pipes
    ) as head:
        assert head.stdin and head.stdout
        address = head.stdout.readline().strip()
        said = [
            subprocess.run(
                [*python, VISITOR, address],
                cwd=ROOT,
                env=env,
                capture_output=True,
                text=True,
                timeout=900,
            ).stdout
            for env in (without, os.environ | {"RAY_AUTH_MODE": "token"})
        ]
        head.stdin.close()
    assert said[0] == "1\n"
    assert "ends every actor of this process" in said[1] and "RAY_AUTH_MODE" in said[1]
