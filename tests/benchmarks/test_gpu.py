"""benchmarks/gpu.py runs on a CPU at toy size, without the packages that it says it does not
need."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

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
