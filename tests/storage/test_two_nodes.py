"""A sweep in a bucket, on nodes that share no disk, while requests fail and machines die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from speechft_ray.storage.address import parse_url
from speechft_ray.storage.bucket import Bucket
from tests.cluster.ray_clusters import ROOT, STORE_BYTES, ray_folder
from tests.e2e.small_world import complete, environment, manifests, table
from tests.identity.recordings import write_recordings
from tests.storage.s3_server import BUCKET, S3Server

__all__ = ["ray_folder"]  # fixture

CORPUS = {"name": "manifest"}
OBJECTIVE = {"head": "pooled", "corpus": CORPUS, "column": "sound", "batch_size": 4}
SPACE = {
    "name": "two-nodes",
    "encoder": "tiny_hubert",
    "finetune": [{"name": "sounds", "objectives": [OBJECTIVE], "updates": 12}],
    "merge": [{"alpha": {"grid": [0.25, 0.5, 0.75]}}],
    "evaluate": [{"task": "label", "corpus": CORPUS, "column": "sound", "updates": 12}],
    "score": {"zero": "measured", "topline": {"label.accuracy": 101}},
}
"""One fine-tuning, five merges, six evaluations, each of a second or less."""
URL = f"s3://{BUCKET}/two-nodes/runs"
STAGES = ("finetune", "merge", "evaluate")


def start(home: Path, name: str, *options: str | Path, **extra: str) -> subprocess.Popen[str]:
    """Starts a driver, whose cache folder and report are its own."""
    arguments = ["--space", home / "space.json", "--cpu", "--track", "none"]
    arguments += ["--manifest", home / "recordings" / "manifest.tsv"]
    command = [sys.executable, "-m", "speechft_ray", "run", *arguments, *options]
    variables = environment(SPEECHFT_CACHE=str(home / name / "cache"), **extra)
    return subprocess.Popen(
        [*map(str, command), "--report", str(home / name / "report")],
        env={**variables, **{key: os.environ[key] for key in os.environ if key.startswith("RAY_")}},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )


def finish(driver: subprocess.Popen[str]) -> None:
    text, _ = driver.communicate(timeout=3000)
    assert driver.returncode == 0, text


@pytest.fixture
def nodes(ray_folder: Path, s3: S3Server, tmp_path: Path) -> Iterator[Any]:
    """A head without CPUs; nodes are added by ``add_node``, each with a disk of its own."""
    from ray.cluster_utils import Cluster as Nodes

    quick = {"health_check_period_ms": 1000, "health_check_failure_threshold": 10}
    size = {"object_store_memory": STORE_BYTES, "include_dashboard": False}
    made = Nodes(
        initialize_head=True, head_node_args={**size, "num_cpus": 0, "_system_config": quick}
    )
    yield made
    made.shutdown()


def add_node(nodes: Any, home: Path, name: str) -> Any:
    for attempt in range(5):
        try:
            node = nodes.add_node(
                num_cpus=1,
                object_store_memory=STORE_BYTES,
                env_vars={"SPEECHFT_CACHE": str(home / name / "cache")},
            )
            nodes.wait_for_nodes()
            return node
        except Exception as error:  # Ray waits for 30 s, which a busy machine exceeds
            if attempt == 4 or "timed out" not in str(error):
                raise
    return None


def list_units(bucket: Bucket) -> dict[str, float]:
    """When each complete unit was published."""
    return {
        item.key: item.modified
        for item in bucket.list("")
        if item.key.startswith(STAGES) and item.key.endswith("/manifest.json")
    }


def wait_for_units(bucket: Bucket, count: int, driver: subprocess.Popen[str]) -> dict[str, float]:
    while len(units := list_units(bucket)) < count and driver.poll() is None:
        time.sleep(0.2)
    return units


def copy_to_folder(bucket: Bucket, folder: Path) -> Path:
    for item in bucket.list(""):
        path = folder / item.key
        path.parent.mkdir(parents=True, exist_ok=True)
        bucket.download(item.key, path)
    return folder


@pytest.mark.slow
def test_nothing_is_lost_when_a_node_and_the_driver_die(
    nodes: Any, s3: S3Server, tmp_path: Path
) -> None:
    """MLflow is left out, which is a view of the driver alone and takes half of the time."""
    write_recordings(tmp_path / "recordings")
    (tmp_path / "space.json").write_text(json.dumps(SPACE))
    finish(start(tmp_path, "folder", "--in-process", "--storage", tmp_path / "folder" / "runs"))

    bucket = Bucket(parse_url(URL))
    on_cluster = ("--storage", URL, "--address", nodes.address)
    first, *_ = [add_node(nodes, tmp_path, name) for name in ("first", "second", "third")]
    s3.set_faults(0.01)
    driver = start(tmp_path, "driver", *on_cluster, **s3.environment)
    before = wait_for_units(bucket, 1, driver)
    assert driver.poll() is None, driver.communicate()[0]
    driver.send_signal(signal.SIGKILL)
    driver.communicate()

    driver = start(tmp_path, "driver", *on_cluster, **s3.environment)
    wait_for_units(bucket, len(before) + 2, driver)
    assert driver.poll() is None, driver.communicate()[0]
    nodes.remove_node(first, allow_graceful=False)
    finish(driver)
    s3.set_faults(0.0)

    after = list_units(bucket)
    assert {key: after[key] for key in before} == before, "a finished unit was written again"
    copy = copy_to_folder(bucket, tmp_path / "copy")
    assert manifests(copy) == manifests(tmp_path / "folder" / "runs")
    assert table(tmp_path / "driver" / "report") == table(tmp_path / "folder" / "report")
    # Each disk has copies of its own, and none has those of the other.
    (second,) = (tmp_path / "second" / "cache" / "storages").iterdir()
    (third,) = (tmp_path / "third" / "cache" / "storages").iterdir()
    assert complete(second) and complete(third)
    assert complete(third).keys() != complete(second).keys()
    assert not list((tmp_path / "driver").glob("cache/storages/*/finetune/*/encoder.safetensors"))
    assert list(bucket.list("work/")) == []
