"""Measures merges at the size of HuBERT Base: 211 tensors, 94.4M float32 numbers, three donors.

Run ``python -m benchmarks.merging`` (on a quiet machine about ten minutes with the peer, two
without; 4 GB of disk, 5 GB of memory). The peer is mergekit 0.1.5 in the environment that ``make
peers`` builds; without it, its rows are left out. All figures come from one run on one thread. CPU
seconds are user and system time, on which a busy machine has the smallest effect; they are medians
of ``--repeats``, or of ``--peer-repeats`` for the peer. Commands of both take turns, so that a
change of load meets them alike; ``--commands`` measures nothing else.
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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.merging_files import make_files, make_shapes
from benchmarks.merging_floor import measure_floors
from speechft_ray.merging.resident import ResidentMerger

ROOT = Path(__file__).parents[1]
PEER = ROOT / ".peers" / "mergekit" / "bin"
HAS_PEER = (PEER / "mergekit-pytorch").exists()
LERP = "torch.lerp into a ready buffer"


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


class Measured(NamedTuple):
    """Medians of one command."""

    cpu: float
    """User and system time in seconds."""
    wall: float
    """Seconds."""
    peak: float
    """Highest peak memory in MB."""


def measure_in_turns(
    commands: Mapping[str, list[Any]], repeats: Mapping[str, int]
) -> dict[str, Measured]:
    """Runs all commands in turns, each as often as ``repeats`` says, and returns their medians."""
    runs: dict[str, list[Measured]] = {name: [] for name in commands}
    for turn in range(max(repeats.values())):
        for name, command in commands.items():
            if turn < repeats[name]:
                runs[name].append(measure_command(command))
                cpu, load = runs[name][-1].cpu, os.getloadavg()[0]
                print(f"{name}: {cpu:.1f} CPU s at a load of {load:.0f}", file=sys.stderr)
    return {
        name: Measured(
            cpu=statistics.median(run.cpu for run in own),
            wall=statistics.median(run.wall for run in own),
            peak=max(run.peak for run in own),
        )
        for name, own in runs.items()
    }


def measure_command(arguments: list[Any]) -> Measured:
    """Runs a command once."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [str(item) for item in arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, arguments))} ended with {process.returncode}")
    return Measured(
        cpu=used.ru_utime + used.ru_stime,
        wall=time.perf_counter() - start,
        peak=used.ru_maxrss / 1024,
    )


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


OURS, PEERS = "speechft merge: ", "mergekit-pytorch: "
START = "start-up"
PAIRS = {
    "linear": "linear",
    "TIES": "TIES",
    "TIES like mergekit": "TIES",
    "DARE-TIES like mergekit": "DARE-TIES",
}
"""Our merges and the peer's."""


def list_own_commands(paths: list[Path], folder: Path) -> dict[str, list[Any]]:
    """Returns the commands of ``speechft merge`` on plain files, and those of its start-up."""
    small = [folder / f"{name}.safetensors" for name in ("small", "small_a")]
    for path, value in zip(small, (0.0, 1.0), strict=True):
        save_file({"w": torch.full((2,), value)}, path)

    def merge(method: str, base: Path, *donors: Path, like: bool = False) -> list[Any]:
        files = ["--base", base, *(item for donor in donors for item in ("--donor", donor))]
        params = ["--param", "density=0.2", "--param", "like=mergekit"] if like else []
        out = ["--out", folder / "ours.safetensors", "--force"]
        return [sys.executable, "-m", "speechft_ray", "merge", method, *files, *params, *out]

    return {
        "import of torch": [sys.executable, "-c", "import torch"],
        f"{OURS}{START}": merge("linear", *small),
        f"{OURS}linear": merge("linear", *paths),
        f"{OURS}TIES": merge("ties", *paths),
        f"{OURS}TIES like mergekit": merge("ties", *paths, like=True),
        f"{OURS}DARE-TIES like mergekit": merge("dare_ties", *paths, like=True),
    }


def list_peer_commands(paths: list[Path], folder: Path) -> dict[str, list[Any]]:
    """Writes the recipes of mergekit for the same files, and returns its commands."""
    command = PEER / "mergekit-pytorch"
    commands: dict[str, list[Any]] = {f"{PEERS}{START}": [command, "--help"]}
    base, *donors = (str(path) for path in paths)
    for name, method in PEER_METHODS.items():
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
        commands[f"{PEERS}{name}"] = [command, config_file, folder / f"peer_{method}", "--quiet"]
    return commands


PEER_METHODS = {"linear": "linear", "TIES": "ties", "DARE-TIES": "dare_ties"}


def measure_commands(
    paths: list[Path], folder: Path, repeats: int, peer_repeats: int
) -> dict[str, Measured]:
    """Measures our commands and the peer's, where it is there, in turns."""
    own = list_own_commands(paths, folder)
    peer = list_peer_commands(paths, folder) if HAS_PEER else {}
    counts = dict.fromkeys(own, repeats) | dict.fromkeys(peer, peer_repeats)
    return measure_in_turns({**own, **peer}, counts)


def print_commands(measured: Mapping[str, Measured]) -> None:
    """Prints the medians of all commands, and the ratios of the peer's to ours: whole, and without
    the start-up of either."""
    rows = [
        (name, f"{each.cpu:.1f}", f"{each.wall:.1f}", f"{each.peak:,.0f}")
        for name, each in measured.items()
    ]
    print_table("Commands, files to file", [("command", "CPU s", "wall s", "peak MB"), *rows])
    if not HAS_PEER:
        return
    start, peer_start = (measured[f"{program}{START}"].cpu for program in (OURS, PEERS))
    ratios = []
    for own, peer in PAIRS.items():
        one, other = measured[f"{OURS}{own}"].cpu, measured[f"{PEERS}{peer}"].cpu
        ratios.append((own, f"{other / one:.1f}", f"{(other - peer_start) / (one - start):.1f}"))
    head = ("merge", "whole commands", "without start-up")
    print_table("mergekit's CPU seconds over ours", [head, *ratios])


def print_floors(
    measured: Mapping[str, Measured], paths: list[Path], folder: Path, repeats: int
) -> None:
    """Prints what no merge can do without beside what the commands take."""
    floors = measure_floors(paths, folder, measured[f"{OURS}{START}"].cpu, repeats)
    rows = []
    for name, floor in floors.items():
        total = measured[f"{OURS}{name}"].cpu
        parts = (f"{seconds:.1f}" for seconds in (*floor, floor.total, total))
        rows.append((name, *parts, f"{total / floor.total:.2f}"))
    head = ("merge", "start-up", "reading", "arithmetic", "writing", "sum", "command", "ratio")
    print_table("CPU seconds of the parts, each alone, and of the command", [head, *rows])


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
    for name, method in PEER_METHODS.items():
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


def print_table(title: str, rows: Sequence[tuple[str, ...]]) -> None:
    """Prints a Markdown table; the first row is the header."""
    print(f"\n{title}\n")
    head, *body = rows
    for row in (head, tuple("---" for _ in head), *body):
        print("| " + " | ".join(row) + " |", flush=True)


def main() -> None:
    """Measures everything and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="Number of measurements per median.")
    parser.add_argument("--peer-repeats", type=int, default=3, help="The same for mergekit.")
    parser.add_argument("--commands", action="store_true", help="Measure the commands alone.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # In a process of its own: the peak memory of a command includes the memory of the process
        # that starts it.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            paths = pool.apply(make_files, (folder,))
        print(f"load before: {os.getloadavg()[0]:.0f}", flush=True)
        commands = measure_commands(paths, folder, options.repeats, options.peer_repeats)
        print_commands(commands)
        print_floors(commands, paths, folder, options.repeats)
        print(f"\nload after: {os.getloadavg()[0]:.0f}", flush=True)
        if not options.commands:
            measure_in_process(paths, folder, options.repeats)


def measure_in_process(paths: list[Path], folder: Path, repeats: int) -> None:
    """Measures merges without start-up, and the memory of streaming; prints the tables."""
    if HAS_PEER:
        peer = measure_peer_in_process(folder, 1)
        in_process = [(name, f"{seconds:.1f}") for name, seconds in peer.items()]
        print_table("mergekit in process", [("merge", "CPU s"), *in_process])
    largest = max(math.prod(shape) for shape in make_shapes().values()) * 4 / 2**20
    rows = [
        (method, f"{measure_streaming_peak(paths, folder, method):.0f}", f"{5 * largest:.0f}")
        for method in ("linear", "ties")
    ]
    head = ("method", "measured MB", "largest tensor x (donors + 2), MB")
    print_table("Streaming: growth of memory", [head, *rows])
    # In memory last: a command started from a large process counts its memory as well.
    measured = measure_one_pass(repeats) | measure_resident(paths, repeats)
    lines = [
        (what, f"{1000 * seconds:,.0f} ms", f"{seconds / measured[LERP]:,.1f}")
        for what, seconds in measured.items()
    ]
    print_table("In memory, CPU time", [("what", "median", "times torch.lerp"), *lines])


if __name__ == "__main__":
    main()
