"""Measures merges at the size of HuBERT Base: 211 tensors, 94.4M float32 numbers, three donors.

Run ``python benchmarks/merging.py`` (about ten minutes with the peer, two without; 4 GB of disk, 5
GB of memory). The peer is mergekit 0.1.5 in the environment that ``make peers`` builds; without it,
its rows are left out. All figures come from one run on one thread. CPU seconds are user and system
time, on which a busy machine has the smallest effect; they are medians of ``--repeats``.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from speechft_ray.merging.resident import ResidentMerger

ROOT = Path(__file__).parents[1]
PEER = ROOT / ".peers" / "mergekit" / "bin"
DIM, INNER, LAYERS, CHANNELS = 768, 3072, 12, 512
LERP = "torch.lerp into a ready buffer"
STEP = 0.002
"""Standard deviation of the task vectors; that of the weights is 0.05."""


def make_shapes() -> dict[str, tuple[int, ...]]:
    """Returns the shapes of HuBERT Base's tensors by their names in fairseq."""
    shapes: dict[str, tuple[int, ...]] = {
        "mask_emb": (DIM,),
        "post_extract_proj.weight": (DIM, CHANNELS),
    }
    for index, width in enumerate((10, 3, 3, 3, 3, 2, 2)):
        shapes[f"feature_extractor.conv_layers.{index}.0.weight"] = (
            CHANNELS,
            CHANNELS if index else 1,
            width,
        )
    for name in (
        "feature_extractor.conv_layers.0.2.weight",
        "feature_extractor.conv_layers.0.2.bias",
    ):
        shapes[name] = (CHANNELS,)
    shapes |= {
        "layer_norm.weight": (CHANNELS,),
        "layer_norm.bias": (CHANNELS,),
        "post_extract_proj.bias": (DIM,),
    }
    shapes |= {
        "encoder.pos_conv.0.weight_v": (DIM, DIM // 16, 128),
        "encoder.pos_conv.0.weight_g": (1, 1, 128),
    }
    for name in ("encoder.pos_conv.0.bias", "encoder.layer_norm.weight", "encoder.layer_norm.bias"):
        shapes[name] = (DIM,)
    for layer in range(LAYERS):
        place = f"encoder.layers.{layer}."
        for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
            shapes |= {
                f"{place}self_attn.{part}.weight": (DIM, DIM),
                f"{place}self_attn.{part}.bias": (DIM,),
            }
        for part in ("self_attn_layer_norm", "final_layer_norm"):
            shapes |= {f"{place}{part}.weight": (DIM,), f"{place}{part}.bias": (DIM,)}
        shapes |= {f"{place}fc1.weight": (INNER, DIM), f"{place}fc1.bias": (INNER,)}
        shapes |= {f"{place}fc2.weight": (DIM, INNER), f"{place}fc2.bias": (DIM,)}
    return shapes


def make_files(folder: Path) -> list[Path]:
    """Writes a base and three donors near it."""
    source = torch.Generator().manual_seed(0)
    base = {
        key: 0.05 * torch.randn(shape, generator=source) for key, shape in make_shapes().items()
    }
    paths = [folder / f"{name}.safetensors" for name in ("base", "a", "b", "c")]
    save_file(base, paths[0])
    for path in paths[1:]:
        save_file(
            {
                key: tensor + STEP * torch.randn(tensor.shape, generator=source)
                for key, tensor in base.items()
            },
            path,
        )
    return paths


def map_file(path: Path) -> dict[str, torch.Tensor]:
    """Maps a file's tensors into memory."""
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def measure_cpu_seconds(do: Callable[[int], object], repeats: int) -> float:
    """Returns the median CPU time of a call, in seconds; the first call is a warm-up."""
    seconds = []
    for turn in range(repeats + 1):
        start = time.process_time()
        do(turn)
        seconds.append(time.process_time() - start)
    return statistics.median(seconds[1:])


def measure_command(arguments: list[Any], repeats: int) -> tuple[float, float, float]:
    """Returns median CPU seconds, median wall seconds and the highest peak memory in MB of a
    command."""
    cpu, wall, peak = [], [], 0.0
    for _ in range(repeats):
        start = time.perf_counter()
        process = subprocess.Popen(
            [str(item) for item in arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(map(str, arguments))} ended with {process.returncode}")
        wall.append(time.perf_counter() - start)
        cpu.append(used.ru_utime + used.ru_stime)
        peak = max(peak, used.ru_maxrss / 1024)
    return statistics.median(cpu), statistics.median(wall), peak


def measure_one_pass(repeats: int) -> dict[str, float]:
    """Measures one pass over as many numbers, which no merge can undercut."""
    total = sum(math.prod(shape) for shape in make_shapes().values())
    one, other, out = (torch.randn(total) for _ in range(3))
    source, target = one.numpy(), out.numpy()
    return {
        LERP: measure_cpu_seconds(lambda _: torch.lerp(one, other, 0.3, out=out), repeats),
        "numpy copy into a ready buffer": measure_cpu_seconds(
            lambda _: np.copyto(target, source), repeats
        ),
    }


def measure_resident(paths: list[Path], repeats: int) -> dict[str, float]:
    """Measures merges of ``ResidentMerger``."""
    base, *donors = (map_file(path) for path in paths)
    merger = ResidentMerger(base, donors)
    mergekit = {"like": "mergekit", "density": 0.2}

    def scan(turn: int) -> None:
        for point in range(300):
            merger.merge("ties", {}, (point + 1) / 300)

    timings = {
        "resident linear, another alpha": measure_cpu_seconds(
            lambda turn: merger.merge("linear", {}, 0.1 + 0.01 * turn), repeats
        ),
        "resident linear, another scale": measure_cpu_seconds(
            lambda turn: merger.merge("linear", {"scale": 1 + 0.1 * turn}, 0.5), repeats
        ),
        "resident linear, other weights": measure_cpu_seconds(
            lambda turn: merger.merge("linear", {"weights": [1, 2, 3 + turn]}, 0.5), repeats
        ),
        "resident TIES, other weights": measure_cpu_seconds(
            lambda turn: merger.merge("ties", {"weights": [1, 2, 3 + turn]}, 0.5), repeats
        ),
        "resident TIES, another density": measure_cpu_seconds(
            lambda turn: merger.merge("ties", {"density": 0.2 + 0.05 * turn}, 0.5), repeats
        ),
        "resident DARE-TIES, another seed": measure_cpu_seconds(
            lambda turn: merger.merge("dare_ties", {**mergekit, "seed": turn}, 0.5), repeats
        ),
    }
    start = time.process_time()
    scan(0)
    timings["300-point alpha scan of a TIES merge"] = time.process_time() - start
    return timings


def measure_own_commands(
    paths: list[Path], folder: Path, repeats: int
) -> dict[str, tuple[float, float, float]]:
    """Measures ``speechft merge`` on plain files, and its start-up time."""
    base, *donors = paths
    out = folder / "ours.safetensors"
    files = [
        "--base",
        base,
        *(item for donor in donors for item in ("--donor", donor)),
        "--out",
        out,
        "--force",
    ]
    mergekit = ["--param", "density=0.2", "--param", "like=mergekit"]
    speechft = [sys.executable, "-m", "speechft_ray", "merge"]
    cases: dict[str, list[Any]] = {
        "linear": ["linear", *files],
        "TIES": ["ties", *files],
        "TIES, the peer's conventions": ["ties", *files, *mergekit],
        "DARE-TIES, the peer's conventions": ["dare_ties", *files, *mergekit],
    }
    small = folder / "small.safetensors"
    save_file({"w": torch.zeros(2)}, small)
    save_file({"w": torch.ones(2)}, folder / "small_a.safetensors")
    tiny = [
        "linear",
        "--base",
        small,
        "--donor",
        folder / "small_a.safetensors",
        "--out",
        out,
        "--force",
    ]
    timings = {
        "start-up (a merge of two numbers)": measure_command([*speechft, *tiny], max(5, repeats))
    }
    return timings | {
        name: measure_command([*speechft, *case], repeats) for name, case in cases.items()
    }


def measure_peer_commands(
    paths: list[Path], folder: Path, repeats: int
) -> dict[str, tuple[float, float, float]]:
    """Measures mergekit's own command on the same files."""
    base, *donors = (str(path) for path in paths)
    timings = {}
    for name, method in (("linear", "linear"), ("TIES", "ties"), ("DARE-TIES", "dare_ties")):
        parameters = {"weight": 1.0} if method == "linear" else {"weight": 1.0, "density": 0.2}
        config: dict[str, Any] = {
            "merge_method": method,
            "models": [{"model": donor, "parameters": parameters} for donor in donors],
            "dtype": "float32",
        }
        if method != "linear":
            config["base_model"] = base
        config_file = folder / f"{method}.yaml"
        config_file.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
        timings[name] = measure_command(
            [PEER / "mergekit-pytorch", config_file, folder / f"peer_{method}", "--quiet"], repeats
        )
    return timings


IN_PROCESS = """
import sys, time, yaml, torch
torch.set_num_threads(1)
from mergekit.graph import Executor
from mergekit.options import MergeOptions
from mergekit.scripts.merge_raw_pytorch import RawPyTorchMergeConfig, plan_flat_merge
config = RawPyTorchMergeConfig.model_validate(yaml.safe_load(open(sys.argv[1])))
start = time.process_time()
tasks = plan_flat_merge(config, sys.argv[2], False, False, MergeOptions())
Executor(tasks, math_device="cpu", storage_device="cpu").execute()
print(time.process_time() - start)
"""


def measure_peer_in_process(folder: Path, repeats: int) -> dict[str, float]:
    """Measures mergekit's merges without its start-up: plan, read, merge and write, in CPU
    seconds."""
    timings = {}
    for name, method in (("linear", "linear"), ("TIES", "ties"), ("DARE-TIES", "dare_ties")):
        call = [
            PEER / "python",
            "-c",
            IN_PROCESS,
            folder / f"{method}.yaml",
            folder / f"peer_{method}",
        ]
        runs = [
            subprocess.run([str(i) for i in call], capture_output=True, text=True, check=True)
            for _ in range(repeats)
        ]
        timings[name] = statistics.median(float(run.stdout.split()[-1]) for run in runs)
    return timings


STREAMING = """
import sys
from pathlib import Path
import torch
from speechft_ray.merging.base import METHODS
from speechft_ray.merging.streaming import merge_files
METHODS.names()
# getrusage would count the memory of the process that started this one.
peak = lambda: int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
before = peak()
base, *donors, out = map(Path, sys.argv[2:])
merge_files(sys.argv[1], {}, base, donors, 0.5, out, memory_bytes=0)
print(peak() - before)
"""


def measure_streaming_peak(paths: list[Path], folder: Path, method: str) -> float:
    """Returns the memory in MB, beyond that of Python with torch, of a merge tensor by tensor."""
    call = [sys.executable, "-c", STREAMING, method, *paths, folder / "streamed.safetensors"]
    process = subprocess.run(
        [str(item) for item in call], capture_output=True, text=True, check=True
    )
    return float(process.stdout)


def print_table(title: str, rows: list[tuple[str, ...]]) -> None:
    """Prints a Markdown table; the first row is the header."""
    print(f"\n{title}\n")
    head, *body = rows
    for row in (head, tuple("---" for _ in head), *body):
        print("| " + " | ".join(row) + " |", flush=True)


def main() -> None:
    """Measures everything and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="Number of measurements per median.")
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    os.environ |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    has_peer = (PEER / "mergekit-pytorch").exists()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # In a process of its own: the peak memory of a command includes the memory of the process
        # that starts it.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            paths = pool.apply(make_files, (folder,))
        own = measure_own_commands(paths, folder, repeats)
        peer = measure_peer_commands(paths, folder, max(1, repeats // 2)) if has_peer else {}
        in_process = measure_peer_in_process(folder, 1) if has_peer else {}
        rows = [
            (f"speechft merge: {what}", *(f"{x:.1f}" for x in row[:2]), f"{row[2]:,.0f}")
            for what, row in own.items()
        ]
        rows += [
            (f"mergekit-pytorch: {what}", *(f"{x:.1f}" for x in row[:2]), f"{row[2]:,.0f}")
            for what, row in peer.items()
        ]
        rows += [
            (f"mergekit in process: {what}", f"{seconds:.1f}", "", "")
            for what, seconds in in_process.items()
        ]
        print_table("Commands, files to file", [("command", "CPU s", "wall s", "peak MB"), *rows])
        if has_peer:
            pairs = [
                ("linear", "linear"),
                ("TIES", "TIES"),
                ("TIES", "TIES, the peer's conventions"),
                ("DARE-TIES", "DARE-TIES, the peer's conventions"),
            ]
            rows = [(case, f"{peer[name][0] / own[case][0]:.1f}") for name, case in pairs]
            print_table("mergekit's command over ours, CPU seconds", [("merge", "times"), *rows])
        largest = max(math.prod(shape) for shape in make_shapes().values()) * 4 / 2**20
        rows = [
            (
                method,
                f"{measure_streaming_peak(paths, folder, method):.0f} MB",
                f"{5 * largest:.0f} MB",
            )
            for method in ("linear", "ties")
        ]
        print_table(
            "Streaming: growth of memory",
            [("method", "measured", "largest tensor x (donors + 2)"), *rows],
        )
        # In memory last, for the same reason.
        measured = measure_one_pass(repeats) | measure_resident(paths, repeats)
        rows = [
            (what, f"{1000 * seconds:,.0f} ms", f"{seconds / measured[LERP]:,.1f}")
            for what, seconds in measured.items()
        ]
        print_table("In memory, CPU time", [("what", "median", "times torch.lerp"), *rows])


if __name__ == "__main__":
    main()
