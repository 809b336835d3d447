"""All eleven tasks from folders in the real layouts to metrics, on real Ray: ``make all-tasks``
(some minutes; not a pytest).

Through ``launch/sweep_alpha.py``: a stable fine-tuning of two updates, a merge, and every task for
FBank, both controls and the merge; once on two nodes of two CPUs and once on one CPU, into two
storages, with the same numbers in both. Through ``speechft evaluate``: the same tasks, one
command each, with the published protocol but for sizes.
"""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from speechft_ray.core.records import read_scores
from speechft_ray.speech.checkpoints.safetensors_dir import write_encoder
from speechft_ray.superb.tasks.base import TASKS
from tests.e2e.small_world import REPOSITORY, environment, manifests, run
from tests.speech.toy_models import toy_hubert
from tests.superb.real_layouts import LAYOUTS, ROWS

BEST, RATES = 200.0, (".per", ".wer", ".cer", "_cer", ".der", ".eer")
"""Better than perfect, since FBank can be perfect by chance on corpora this small, and no scale may
have length zero."""
STORE_BYTES = 80 << 20
METRICS = [metric for task, *_ in ROWS for metric in TASKS.get(task).metrics]


def space() -> dict[str, Any]:
    """Every task with two updates, after a fine-tuning of two updates on LibriSpeech's letters."""
    letters = {"head": "ctc", "corpus": {"name": "librispeech"}, "column": "text", "batch_size": 2}
    options = {"unit": "characters", "projection": 8, "lstm_layers": 1, "lstm_hidden": 8}
    return {
        "name": "all-tasks",
        "finetune": [
            {"name": "letters", "objectives": [{**letters, "options": options}], "updates": 2}
        ],
        "merge": [{"alpha": 0.25}],
        "evaluate": [
            {
                "task": task,
                "corpus": {"name": corpus, "options": corpus_options},
                "updates": 2,
                "batch_size": 4,
                "options": options,
            }
            for task, corpus, corpus_options, options in ROWS
        ],
        "score": {
            "zero": "measured",
            "topline": {metric: -BEST if metric.endswith(RATES) else BEST for metric in METRICS},
        },
    }


@contextmanager
def cluster(cpus: tuple[int, ...]) -> Iterator[str]:
    """Starts a Ray cluster with so many CPUs on each node, yields its address, and stops it."""
    from ray.cluster_utils import Cluster

    size: dict[str, Any] = {"num_gpus": 0, "object_store_memory": STORE_BYTES}
    ray_cluster = Cluster(
        initialize_head=True,
        head_node_args={**size, "num_cpus": cpus[0], "include_dashboard": False},
    )
    for count in cpus[1:]:
        ray_cluster.add_node(**size, num_cpus=count)
    ray_cluster.wait_for_nodes()
    try:
        yield ray_cluster.address
    finally:
        ray_cluster.shutdown()


def sweep(home: Path, name: str, address: str, own: Mapping[str, str]) -> dict[str, Any]:
    """Runs the launch script; returns the facts of every unit without clock times."""
    inputs: list[str | Path] = [
        "--space",
        home / "all.yaml",
        "--encoder",
        home / "encoder.safetensors",
        "--corpora",
        home / "corpora",
    ]
    outputs: list[str | Path] = [
        "--storage",
        home / name,
        "--report",
        home / f"report-{name}",
        "--address",
        address,
        "--cpu",
    ]
    began = time.monotonic()
    done = run("sweep_alpha.py", *inputs, *outputs, timeout=1500, **own)
    assert done.returncode == 0, done.stderr + done.stdout
    facts = manifests(home / name)
    count = sum(key.startswith("evaluate/") for key in facts)
    print(
        f"PASS  {name}: sweep_alpha.py, {count} evaluations in {time.monotonic() - began:.0f} s",
        flush=True,
    )
    return facts


def check_table(path: Path) -> None:
    """Checks that every row of the result table has a finite number for every metric."""
    lines = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    assert {line["role"] for line in lines} == {"pre-trained", "merge", "stable fine-tuning"}
    for line in lines:
        for metric in METRICS:
            assert math.isfinite(float(line[metric])), (metric, line)
    print(f"PASS  the table has a finite number for {len(METRICS)} metrics in {len(lines)} rows")


def evaluate(
    home: Path,
    row: tuple[str, str, dict[str, Any], dict[str, Any]],
    address: str,
    own: Mapping[str, str],
) -> None:
    """Runs ``speechft evaluate`` on one task and checks its metrics."""
    task, corpus, corpus_options, options = row
    storage = home / "evaluate"
    before = set(storage.glob("evaluate/*"))
    command = [
        sys.executable,
        "-m",
        "speechft_ray",
        "evaluate",
        "--task",
        task,
        "--updates",
        "2",
        "--cpu",
    ]
    command += [
        "--encoder",
        str(home / "encoder.safetensors"),
        "--corpus",
        str(home / "corpora" / corpus),
    ]
    command += ["--storage", str(storage), "--address", address]
    for option in (f"{name}={value}" for name, value in options.items()):
        command += ["--option", option]
    for option in (
        f"{name}={value}" for name, value in corpus_options.items() if name == "silence_crops"
    ):
        command += ["--corpus-option", option]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment(**own), cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr + done.stdout
    (unit,) = set(storage.glob("evaluate/*")) - before
    scores = read_scores(json.loads((unit / "manifest.json").read_text()))
    assert {score.metric for score in scores} == set(TASKS.get(task).metrics)
    assert all(math.isfinite(value) for score in scores for value in score.values)
    summary = ", ".join(f"{score.metric} {score.split} {score.mean:.2f}" for score in scores)
    print(f"PASS  speechft evaluate --task {task} --corpus {corpus}: {summary}", flush=True)


def main() -> None:
    """Runs everything below a new folder; the first failure raises."""
    # Ray puts its sockets there, whose paths have at most 108 characters.
    home = Path(tempfile.mkdtemp(prefix="sft", dir="/tmp"))
    own = {
        "HOME": str(home),
        "RAY_TMPDIR": str(home),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(REPOSITORY),
    }
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        del os.environ[name]
    os.environ.update(own, OMP_NUM_THREADS="1")
    try:
        write_encoder(home / "encoder.safetensors", toy_hubert(), {})
        for name, layout in LAYOUTS.items():
            layout.lay_out(home / "corpora" / name)
        (home / "all.yaml").write_text(json.dumps(space(), indent=1))
        with cluster((2, 2)) as address:
            four = sweep(home, "four-workers", address, own)
            check_table(home / "report-four-workers" / "table.csv")
            for row in ROWS:
                evaluate(home, row, address, own)
        with cluster((1,)) as address:
            one = sweep(home, "one-worker", address, own)
        assert one == four
        print(
            f"PASS  one worker and four workers on two nodes: {len(one)} units are equal in every "
            "digit"
        )
    finally:
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
