"""How fast merges are, at the size of HuBERT Base: 211 tensors, 94.4M float32 numbers, three
donors.

Run ``python benchmarks/merging.py`` (about ten minutes with the peer, two without; 4 GB of disk, 5
GB of memory). The peer is mergekit 0.1.5 in the environment that ``make peers`` builds; without it
its lines are left out. All figures come from one run; everything runs on one thread. CPU seconds
are user and system time, which a busy machine disturbs least; medians of ``--repeats``.
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
FLOOR = "torch.lerp into a ready buffer"
STEP = 0.002
"""Size of the donors' steps; the weights themselves are 0.05."""


def shapes() -> dict[str, tuple[int, ...]]:
    """The tensors of HuBERT Base by fairseq's names."""
    found: dict[str, tuple[int, ...]] = {
        "mask_emb": (DIM,),
        "post_extract_proj.weight": (DIM, CHANNELS),
    }
    for index, width in enumerate((10, 3, 3, 3, 3, 2, 2)):
        found[f"feature_extractor.conv_layers.{index}.0.weight"] = (
            CHANNELS,
            CHANNELS if index else 1,
            width,
        )
    for name in (
        "feature_extractor.conv_layers.0.2.weight",
        "feature_extractor.conv_layers.0.2.bias",
    ):
        found[name] = (CHANNELS,)
    found |= {
        "layer_norm.weight": (CHANNELS,),
        "layer_norm.bias": (CHANNELS,),
        "post_extract_proj.bias": (DIM,),
    }
    found |= {
        "encoder.pos_conv.0.weight_v": (DIM, DIM // 16, 128),
        "encoder.pos_conv.0.weight_g": (1, 1, 128),
    }
    for name in ("encoder.pos_conv.0.bias", "encoder.layer_norm.weight", "encoder.layer_norm.bias"):
        found[name] = (DIM,)
    for layer in range(LAYERS):
        place = f"encoder.layers.{layer}."
        for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
            found |= {
                f"{place}self_attn.{part}.weight": (DIM, DIM),
                f"{place}self_attn.{part}.bias": (DIM,),
            }
        for part in ("self_attn_layer_norm", "final_layer_norm"):
            found |= {f"{place}{part}.weight": (DIM,), f"{place}{part}.bias": (DIM,)}
        found |= {f"{place}fc1.weight": (INNER, DIM), f"{place}fc1.bias": (INNER,)}
        found |= {f"{place}fc2.weight": (DIM, INNER), f"{place}fc2.bias": (DIM,)}
    return found


def make_files(folder: Path) -> list[Path]:
    """Writes a base and three donors near it."""
    source = torch.Generator().manual_seed(0)
    base = {key: 0.05 * torch.randn(shape, generator=source) for key, shape in shapes().items()}
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


def mapped(path: Path) -> dict[str, torch.Tensor]:
    """Returns a file's tensors where they lie."""
    with safe_open(path, framework="pt") as opened:
        return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118  # not a mapping


def cpu_seconds(do: Callable[[int], object], repeats: int) -> float:
    """Returns the median CPU time of one call, in seconds; the first call warms up and does not
    count."""
    taken = []
    for turn in range(repeats + 1):
        start = time.process_time()
        do(turn)
        taken.append(time.process_time() - start)
    return statistics.median(taken[1:])


def command(arguments: list[Any], repeats: int) -> tuple[float, float, float]:
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


def floor_of_the_machine(repeats: int) -> dict[str, float]:
    """Measures what one pass over as many numbers takes at least."""
    total = sum(math.prod(shape) for shape in shapes().values())
    one, other, out = (torch.randn(total) for _ in range(3))
    source, target = one.numpy(), out.numpy()
    return {
        FLOOR: cpu_seconds(lambda _: torch.lerp(one, other, 0.3, out=out), repeats),
        "numpy copy into a ready buffer": cpu_seconds(lambda _: np.copyto(target, source), repeats),
    }


def in_memory(paths: list[Path], repeats: int) -> dict[str, float]:
    """Measures resident merges."""
    base, *donors = (mapped(path) for path in paths)
    merger = ResidentMerger(base, donors)
    mergekit = {"like": "mergekit", "density": 0.2}

    def scan(turn: int) -> None:
        for point in range(300):
            merger.merge("ties", {}, (point + 1) / 300)

    found = {
        "resident linear, another alpha": cpu_seconds(
            lambda turn: merger.merge("linear", {}, 0.1 + 0.01 * turn), repeats
        ),
        "resident linear, another scale": cpu_seconds(
            lambda turn: merger.merge("linear", {"scale": 1 + 0.1 * turn}, 0.5), repeats
        ),
        "resident linear, other weights": cpu_seconds(
            lambda turn: merger.merge("linear", {"weights": [1, 2, 3 + turn]}, 0.5), repeats
        ),
        "resident TIES, other weights": cpu_seconds(
            lambda turn: merger.merge("ties", {"weights": [1, 2, 3 + turn]}, 0.5), repeats
        ),
        "resident TIES, another density": cpu_seconds(
            lambda turn: merger.merge("ties", {"density": 0.2 + 0.05 * turn}, 0.5), repeats
        ),
        "resident DARE-TIES, another seed": cpu_seconds(
            lambda turn: merger.merge("dare_ties", {**mergekit, "seed": turn}, 0.5), repeats
        ),
    }
    start = time.process_time()
    scan(0)
    found["300-point alpha scan of a TIES merge"] = time.process_time() - start
    return found


def our_commands(
    paths: list[Path], folder: Path, repeats: int
) -> dict[str, tuple[float, float, float]]:
    """Measures ``speechft merge`` on plain files, and its start-up alone."""
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
    found = {"start-up (a merge of two numbers)": command([*speechft, *tiny], max(5, repeats))}
    return found | {name: command([*speechft, *case], repeats) for name, case in cases.items()}


def peer_commands(
    paths: list[Path], folder: Path, repeats: int
) -> dict[str, tuple[float, float, float]]:
    """Measures mergekit's own command on the same files."""
    base, *donors = (str(path) for path in paths)
    found = {}
    for name, method in (("linear", "linear"), ("TIES", "ties"), ("DARE-TIES", "dare_ties")):
        parameters = {"weight": 1.0} if method == "linear" else {"weight": 1.0, "density": 0.2}
        config: dict[str, Any] = {
            "merge_method": method,
            "models": [{"model": donor, "parameters": parameters} for donor in donors],
            "dtype": "float32",
        }
        if method != "linear":
            config["base_model"] = base
        asked = folder / f"{method}.yaml"
        asked.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
        found[name] = command(
            [PEER / "mergekit-pytorch", asked, folder / f"peer_{method}", "--quiet"], repeats
        )
    return found


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


def peer_in_process(folder: Path, repeats: int) -> dict[str, float]:
    """Measures mergekit's merges without its start-up: plan, read, merge and write, in CPU
    seconds."""
    found = {}
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
        found[name] = statistics.median(float(run.stdout.split()[-1]) for run in runs)
    return found


STREAMED = """
import sys
from pathlib import Path
import torch
from speechft_ray.merging.base import METHODS
from speechft_ray.merging.streaming import merge_files
METHODS.names()
# Of this program alone: what getrusage tells begins with the size of the process that started it.
peak = lambda: int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
before = peak()
base, *donors, out = map(Path, sys.argv[2:])
merge_files(sys.argv[1], {}, base, donors, 0.5, out, memory_bytes=0)
print(peak() - before)
"""


def streaming_peak(paths: list[Path], folder: Path, method: str) -> float:
    """Returns by how many MB memory grows over what Python with torch takes, while files are merged
    tensor by tensor."""
    call = [sys.executable, "-c", STREAMED, method, *paths, folder / "streamed.safetensors"]
    done = subprocess.run([str(item) for item in call], capture_output=True, text=True, check=True)
    return float(done.stdout)


def report(title: str, rows: list[tuple[str, ...]]) -> None:
    """Prints a Markdown table; the first row is the head."""
    print(f"\n{title}\n")
    head, *body = rows
    for row in (head, tuple("---" for _ in head), *body):
        print("| " + " | ".join(row) + " |", flush=True)


def main() -> None:
    """Measures everything and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="Measurements whose median is told.")
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    os.environ |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    has_peer = (PEER / "mergekit-pytorch").exists()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # In a process of its own: what a command is told to have taken begins with the size of the
        # one that starts it.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            paths = pool.apply(make_files, (folder,))
        ours = our_commands(paths, folder, repeats)
        theirs = peer_commands(paths, folder, max(1, repeats // 2)) if has_peer else {}
        in_process = peer_in_process(folder, 1) if has_peer else {}
        rows = [
            (f"speechft merge: {what}", *(f"{x:.1f}" for x in row[:2]), f"{row[2]:,.0f}")
            for what, row in ours.items()
        ]
        rows += [
            (f"mergekit-pytorch: {what}", *(f"{x:.1f}" for x in row[:2]), f"{row[2]:,.0f}")
            for what, row in theirs.items()
        ]
        rows += [
            (f"mergekit in process: {what}", f"{taken:.1f}", "", "")
            for what, taken in in_process.items()
        ]
        report("Commands, files to file", [("command", "CPU s", "wall s", "peak MB"), *rows])
        if has_peer:
            pairs = (
                ("linear", "linear"),
                ("TIES", "TIES"),
                ("TIES", "TIES, the peer's conventions"),
            )
            pairs += (("DARE-TIES", "DARE-TIES, the peer's conventions"),)
            rows = [(mine, f"{theirs[peer][0] / ours[mine][0]:.1f}") for peer, mine in pairs]
            report("mergekit's command over ours, CPU seconds", [("merge", "times"), *rows])
        largest = max(math.prod(shape) for shape in shapes().values()) * 4 / 2**20
        rows = [
            (method, f"{streaming_peak(paths, folder, method):.0f} MB", f"{5 * largest:.0f} MB")
            for method in ("linear", "ties")
        ]
        report(
            "Streaming: growth of memory",
            [("method", "measured", "largest tensor x (donors + 2)"), *rows],
        )
        # At last, for the same reason.
        measured = floor_of_the_machine(repeats) | in_memory(paths, repeats)
        rows = [
            (what, f"{1000 * taken:,.0f} ms", f"{taken / measured[FLOOR]:,.1f}")
            for what, taken in measured.items()
        ]
        report("In memory, CPU time", [("what", "median", "times torch.lerp"), *rows])


if __name__ == "__main__":
    main()
