"""What a sweep does not need to be the same: the head of its cluster, what Tune and MLflow wrote.

Each is lost in the middle of a sweep; its end must be equal to that of an undisturbed one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.ray_clusters import STORE_BYTES, ray_folder
from tests.e2e.small_world import (
    SMALL,
    command,
    complete,
    environment,
    manifests,
    places,
    run,
    table,
    write_space,
)
from tests.e2e.test_sweep import mlflow_content

__all__ = ["ray_folder"]  # fixture
pytestmark = pytest.mark.slow

SPACE: dict[str, Any] = {
    "finetune": [{**SMALL["finetune"][0], "seed": 0}],
    "evaluate": [SMALL["evaluate"][1]],
    "score": {"zero": "measured", "topline": {"sid.accuracy": 100}},
}


def arguments(home: Path) -> list[str | Path]:
    return places(home, write_space(home, **SPACE))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("undisturbed")
    done = run("sweep_alpha.py", *arguments(home), "--in-process")
    assert done.returncode == 0, done.stderr
    return home


def finish(home: Path, undisturbed: Path, done_before: dict[str, float]) -> str:
    """Runs the sweep to its end, checks that it is equal and that nothing was computed again;
    returns what was printed, without spaces and line ends.

    To make a new database takes MLflow longer than the end of a short sweep waits for it:
    ``report`` sends what is missing."""
    done = run("sweep_alpha.py", *arguments(home), "--in-process")
    assert done.returncode == 0, done.stderr
    now = complete(home / "runs")
    assert {unit: now[unit] for unit in done_before} == done_before
    assert manifests(home / "runs") == manifests(undisturbed / "runs")
    assert table(home / "report") == table(undisturbed / "report")
    report = [sys.executable, "-m", "speechft_ray", "report", *map(str, arguments(home))]
    subprocess.run(report, env=environment(), capture_output=True, check=True)
    assert mlflow_content(home / "runs") == mlflow_content(undisturbed / "runs")
    return "".join((done.stdout + done.stderr).split())


def start_on(home: Path, *options: str) -> subprocess.Popen[str]:
    """Starts a driver that finds the tests' own Ray."""
    ray = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
    return subprocess.Popen(
        command("sweep_alpha.py", *arguments(home), *options),
        env=environment(**ray),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(driver: subprocess.Popen[str], happens: Callable[[], bool]) -> None:
    while not happens():
        assert driver.poll() is None, driver.communicate()[1]
        time.sleep(0.05)


def has_unit(runs: Path, stage: str) -> bool:
    return any(unit.startswith(f"{stage}/") for unit in complete(runs))


@pytest.fixture
def cluster(ray_folder: Path) -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    size = {"num_cpus": 2, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    for attempt in range(5):
        try:
            made = Cluster(initialize_head=True, head_node_args=size)
            break
        except Exception as error:  # Ray waits for 30 s, which a busy machine exceeds
            if attempt == 4 or "timed out" not in str(error):
                raise
    yield made
    with suppress(Exception):  # its head is gone
        made.shutdown()


def test_the_head_is_lost(cluster: Any, tmp_path: Path, undisturbed: Path) -> None:
    runs = tmp_path / "runs"
    driver = start_on(tmp_path, "--address", cluster.address)
    wait_for(driver, lambda: has_unit(runs, "finetune"))
    cluster.head_node.kill_gcs_server(check_alive=False)
    _, errors = driver.communicate(timeout=900)
    assert driver.returncode == 75, errors
    last = errors.strip().splitlines()[-1]
    assert last.startswith("speechft: stopped, because the head of the Ray cluster at"), errors
    assert "run the same command again" in last
    finish(tmp_path, undisturbed, complete(runs))


@pytest.mark.usefixtures("ray_folder")
def test_tunes_state_is_cut(tmp_path: Path, undisturbed: Path) -> None:
    """All files of Tune are cut to half after the driver was killed while it tunes."""
    runs = tmp_path / "runs"
    driver = start_on(tmp_path)
    wait_for(driver, lambda: any(file.is_file() for file in (runs / "tune").rglob("*")))
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    for file in (runs / "tune").rglob("*"):
        if file.is_file():
            os.truncate(file, file.stat().st_size // 2)
    again = start_on(tmp_path)
    _, errors = again.communicate(timeout=900)
    assert again.returncode == 0, errors
    finish(tmp_path, undisturbed, complete(runs))


def test_mlflows_database_is_cut(tmp_path: Path, undisturbed: Path) -> None:
    """The run that finds it says so and sends everything into a new one."""
    runs = tmp_path / "runs"
    driver = start_on(tmp_path, "--in-process")
    database = runs / "mlflow.db"
    wait_for(driver, lambda: database.exists() and has_unit(runs, "evaluate"))
    driver.send_signal(signal.SIGTERM)
    driver.communicate(timeout=900)
    assert driver.returncode == 75
    os.truncate(database, database.stat().st_size // 2)
    text = finish(tmp_path, undisturbed, complete(runs))
    sentence = f"{database} is damaged: it was moved to {runs / 'damaged' / 'mlflow.db-1'}"
    assert "".join(sentence.split()) in text and "Thesweepgoeson" in text
