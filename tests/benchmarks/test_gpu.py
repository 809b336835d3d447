"""benchmarks/gpu.py runs on a CPU at toy size, without the packages that it says it does not
need."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.cuda._utils import _get_device_index

from benchmarks.gpu_bench import Bench
from benchmarks.gpu_training import _lack_memory

ROOT = Path(__file__).parents[2]
ABSENT = [
    *("ray", "mlflow", "optuna", "cmaes", "pandas", "scipy", "sklearn", "soundfile", "matplotlib"),
    *("ruamel", "yaml", "typer", "rich", "huggingface_hub", "transformers", "pyarrow", "peft"),
]
START = f"""
import sys
from importlib.machinery import PathFinder

find_spec = PathFinder.find_spec
absent = {ABSENT!r} + sys.argv[1].split()
PathFinder.find_spec = lambda name, *rest: (
    None if name.split(".")[0] in absent else find_spec(name, *rest)
)
sys.argv[:2] = ["gpu.py"]
from benchmarks.gpu import main
main()
"""


def run_benchmark(*arguments: str, absent: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", START, absent, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )


def test_toy_sizes_measure_every_section_without_the_packages_of_the_cluster(
    tmp_path: Path,
) -> None:
    done = run_benchmark("--toy", "--json", str(tmp_path / "gpu.json"))
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "gpu.json").read_text())
    assert done.stdout.count("\n| ") >= len(rows)  # the table has them all
    assert not [row for row in rows if row["case"] == "failed"]
    cases = {(row["section"], row["case"]): row for row in rows}
    for kind in ("one by one", "equal length", "padded"):
        assert cases["encode", f"Base (toy), float32, {kind}"]["value"] > 0
    for case in ("plain loop", "ours", "ours, front end cached"):
        assert cases["finetune", f"Large (toy), float32, {case}"]["value"] > 0
    for form in ("exact", "int8", "compact"):
        assert cases["probes", f"pr, {form}"]["value"] > 0
    assert (
        "one sentence: the GPU's memory is too small"
        in (cases["oom", "Base (toy), fine-tune"]["note"])
    )


def test_a_missing_package_is_named_in_one_sentence() -> None:
    done = run_benchmark("--toy", absent="s3prl tqdm")
    assert done.returncode == 2
    assert done.stderr.startswith("error: s3prl, tqdm cannot be imported here: unpack the wheels")
    assert done.stderr.count("\n") == 1


def test_without_a_gpu_full_sizes_are_refused() -> None:
    done = run_benchmark("encode")
    assert done.returncode == 2
    assert done.stderr.startswith("error: torch finds no GPU here: give --toy")
    done = run_benchmark("--device", "cuda:0")
    assert done.returncode == 2
    assert done.stderr.startswith("error: the device cuda:0 cannot be used here: ")


def test_the_memory_of_a_gpu_without_a_number_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch takes ``cuda`` alone for most functions, but not for this one."""
    limits: list[tuple[float, int]] = []

    def limit(share: float, device: Any) -> None:
        limits.append((share, _get_device_index(device)))

    stand_ins: dict[str, Any] = {
        "set_per_process_memory_fraction": limit,
        "memory_reserved": lambda device: 1 << 30,
        "get_device_properties": lambda device: SimpleNamespace(total_memory=8 << 30),
        "current_device": lambda: 0,
        "synchronize": lambda device: None,
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda device: None,
    }
    for name, function in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, function)
    bench = Bench(device=torch.device("cuda"), toy=True, ends=0.0)
    with _lack_memory(bench, object, "unused"):
        assert limits[0][0] < 0.2
    assert [index for _, index in limits] == [0, 0] and limits[1][0] == 1.0
