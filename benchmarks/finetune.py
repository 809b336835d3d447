"""Measures a fine-tuning update of ours against s3prl's own loop: same model, batch size, audio and
number of threads.

    .venv/bin/python -m benchmarks.finetune [equal real] [--layers 12] [--threads 2] [--also
    compiled checkpointed]

The encoder has HuBERT Base's size and random weights, the audio is noise. Each variant runs in a
new process of its own, with the allocator settings of workers. The variants take turns, update by
update, after one update for warming up: first those that update the encoder, then those of the
head-only phase. A waiting process does nothing. ``equal``: medians over updates. ``real``: each
side draws its own batches, so single updates are not comparable; the time of one epoch is divided
by its updates. Verdicts use wall time; with one thread they use processor seconds, which other
processes disturb less. Peak memory is the largest resident size of the process, including building
the model and imports (about 0.5 GB).
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from statistics import mean, median

import torch

from benchmarks.finetune_loops import SETTINGS, VARIANTS, write_start
from speechft_ray.cluster.environment import WORKER_ENVIRONMENT

UPDATES = 4
HEAD_SHARE = 0.1
"""Of the updates of a run (beta of the paper)."""
TARGET = 1.5
FULL, FROZEN = "s3prl", "s3prl, encoder frozen"
UNCACHED, CACHED = "ours, front end not cached", "ours, front end cached"
HEAD, HEAD_CACHED = "ours, head phase", "ours, head phase without dropout"


class Child:
    """A variant in a process of its own, which performs an update on request."""

    def __init__(self, setting: str, variant: str, options: argparse.Namespace) -> None:
        command = [sys.executable, "-m", "benchmarks.finetune", setting, "--child", variant]
        command += ["--start", str(options.start), "--threads", str(options.threads)]
        self.seconds: list[float] = []
        self.processor: list[float] = []
        self._process = subprocess.Popen(
            command,
            text=True,
            env={**os.environ, **options.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._read_answer()

    def update(self, number: int) -> None:
        """Performs one update and notes its seconds."""
        wall, processor = self._request(str(number))
        self.seconds.append(wall)
        self.processor.append(processor)

    def end(self) -> float:
        """Ends the process and returns its peak memory in GB."""
        (peak,) = self._request("end")
        self._process.wait()
        return peak

    def _request(self, line: str) -> list[float]:
        assert self._process.stdin is not None
        print(line, file=self._process.stdin, flush=True)
        return self._read_answer()

    def _read_answer(self) -> list[float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit("a variant ended with an error, see above")
        return [float(word) for word in line.split()]


def child(setting: str, variant: str, start: Path) -> None:
    """Performs the update of every number on standard input, and prints its wall and processor
    seconds."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # s3prl prints
    with tempfile.TemporaryDirectory() as folder:
        update = VARIANTS[variant](SETTINGS[setting], start, Path(folder))
        print(0, file=answers, flush=True)
        while (line := sys.stdin.readline()) not in ("end\n", ""):
            wall, processor = time.perf_counter(), time.process_time()
            update(int(line))
            print(
                time.perf_counter() - wall,
                time.process_time() - processor,
                file=answers,
                flush=True,
            )
        (peak_kib,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        print(int(peak_kib) * 1024 / 1e9, file=answers, flush=True)
    os._exit(0)  # the reading thread waits for updates that never come


def compare(name: str, options: argparse.Namespace) -> bool:
    """Prints the table of one setting and the verdicts."""
    setting = SETTINGS[name]
    count = setting.updates_per_epoch if name == "real" else UPDATES
    print(
        f"\n{name}: {setting.why}; {sum(setting.seconds):.0f} s of audio, {count} updates of each "
        "after one for warming up"
    )
    print(f"  {'':38} s per update   per second   processor s   peak GB")
    wall: dict[str, float] = {}
    processor: dict[str, float] = {}
    also = [f"{CACHED}, {change}" for change in options.also]
    # 4 GB each: not all at once.
    for variants in ([FULL, UNCACHED, CACHED, *also], [FROZEN, HEAD, HEAD_CACHED]):
        children = {variant: Child(name, variant, options) for variant in variants}
        for number in range(1 + count):
            for each in children.values():
                each.update(number)
        for variant, each in children.items():
            middle = mean if name == "real" else median
            wall[variant], processor[variant] = middle(each.seconds[1:]), middle(each.processor[1:])
            row = f"{wall[variant]:12.2f} {1 / wall[variant]:12.3f} {processor[variant]:13.2f}"
            print(f"  {variant:38} {row} {each.end():9.2f}", flush=True)
    return _check_targets(name, processor) if options.threads == 1 else _check_targets(name, wall)


def _check_targets(name: str, seconds: dict[str, float]) -> bool:
    def mean_over_run(head: str, rest: str) -> float:
        return HEAD_SHARE * seconds[head] + (1 - HEAD_SHARE) * seconds[rest]

    base, cached, uncached = (
        mean_over_run(FROZEN, FULL),
        seconds[FULL] / seconds[CACHED],
        seconds[FULL] / seconds[UNCACHED],
    )
    print(
        f"  over a run with {HEAD_SHARE:.0%} head phase: s3prl {base:.2f} s per update "
        "(its encoder frozen in that phase)"
    )
    for what, head, rest in (
        ("front end cached", HEAD, CACHED),
        ("and head phase without dropout", HEAD_CACHED, CACHED),
    ):
        ours = mean_over_run(head, rest)
        print(f"    ours, {what:32} {ours:.2f} s: {base / ours:.2f} times")
    return print_verdict(
        cached >= TARGET,
        f"{name}: an update with the front end cached: {cached:.2f} times s3prl's speed >= "
        f"{TARGET:g}",
    ) & print_verdict(
        uncached >= 1, f"{name}: an update with the front end not cached: {uncached:.2f} times >= 1"
    )


def print_verdict(passed: bool, line: str) -> bool:
    """Prints a line with its verdict."""
    print(f"{'PASS' if passed else 'FAIL'}  {line}", flush=True)
    return passed


def main() -> None:
    """Prints the tables of the settings, and exits with 1 when a line fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("settings", nargs="*", help=f"of {', '.join(SETTINGS)}; both unless given")
    parser.add_argument("--layers", type=int, default=12, help="transformer layers (12)")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="of torch (all processors)"
    )
    parser.add_argument(
        "--also",
        nargs="*",
        default=[],
        choices=("compiled", "checkpointed"),
        help="more variants of ours",
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--start", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")  # s3prl's weight norm
    if options.child:
        return child(options.settings[0], options.child, options.start)
    options.environment = {
        key: value for key, value in WORKER_ENVIRONMENT.items() if key.startswith("MALLOC")
    }
    print(
        f"HuBERT, front end of 512 channels, {options.layers} layers x 768, random weights, "
        f"{options.threads} threads, CPU"
    )
    with tempfile.TemporaryDirectory() as folder:
        options.start = Path(folder) / "start.pt"
        write_start(options.layers, options.start)
        passed = [compare(name, options) for name in options.settings or SETTINGS]
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
