"""What an update of fine-tuning costs: ours against s3prl's own loop, with one model, batch size,
audio and number of threads.

    .venv/bin/python -m benchmarks.finetune [equal real] [--layers 12] [--threads 2] [--also
    compiled checkpointed]

The encoder has HuBERT Base's size and random weights, the audio is noise. Each variant lives in a
fresh process of its own, with the allocator settings that workers have. They take turns, update by
update, after one for warming up: first those that update the encoder, then those of the head-only
phase. A process that waits does nothing. ``equal``: medians over updates. ``real``: each side draws
its own batches, so that single updates are not comparable; all of one epoch is divided by its
updates. Verdicts go by wall time; with one thread by processor seconds, which other work on the
machine disturbs less. Peak memory is the largest resident size of the process, building the model
and imports (about 0.5 GB) included.
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

UPDATES = 4
HEAD_SHARE = 0.1
"""Of the updates of a run (beta of the paper)."""
TARGET = 1.5
FULL, FROZEN = "s3prl", "s3prl, encoder frozen"
UNCACHED, CACHED = "ours, front end not cached", "ours, front end cached"
HEAD, QUIET = "ours, head phase", "ours, head phase without dropout"


class Child:
    """A variant in a process of its own, that takes an update when it is told to."""

    def __init__(self, setting: str, variant: str, options: argparse.Namespace) -> None:
        command = [sys.executable, "-m", "benchmarks.finetune", setting, "--child", variant]
        command += ["--start", str(options.start), "--threads", str(options.threads)]
        self.seconds: list[float] = []
        self.processor: list[float] = []
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(
            command, text=True, env={**os.environ, **options.environment}, **pipes
        )
        self._answer()

    def update(self, number: int) -> None:
        wall, processor = self._ask(str(number))
        self.seconds.append(wall)
        self.processor.append(processor)

    def end(self) -> float:
        """Ends the process and returns its peak memory in GB."""
        (peak,) = self._ask("end")
        self._process.wait()
        return peak

    def _ask(self, line: str) -> list[float]:
        assert self._process.stdin is not None
        print(line, file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> list[float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit("a variant ended with an error, see above")
        return [float(word) for word in line.split()]


def child(setting: str, variant: str, start: Path) -> None:
    """Answers every line on standard input that is a number with the seconds of that update, wall
    and processor."""
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
        f"\n{name}: {setting.why}; {sum(setting.seconds):.0f} s of audio, {count} updates of each after one for warming up"
    )
    print(f"  {'':38} s per update   per second   processor s   peak GB")
    wall: dict[str, float] = {}
    processor: dict[str, float] = {}
    tried = [f"{CACHED}, {change}" for change in options.also]
    for variants in (
        [FULL, UNCACHED, CACHED, *tried],
        [FROZEN, HEAD, QUIET],
    ):  # 4 GB each: not all at once
        children = {variant: Child(name, variant, options) for variant in variants}
        for number in range(1 + count):
            for each in children.values():
                each.update(number)
        for variant, each in children.items():
            middle = mean if name == "real" else median
            wall[variant], processor[variant] = middle(each.seconds[1:]), middle(each.processor[1:])
            shown = f"{wall[variant]:12.2f} {1 / wall[variant]:12.3f} {processor[variant]:13.2f} {each.end():9.2f}"
            print(f"  {variant:38} {shown}", flush=True)
    return _verdicts(name, processor) if options.threads == 1 else _verdicts(name, wall)


def _verdicts(name: str, spent: dict[str, float]) -> bool:
    def over(head: str, rest: str) -> float:
        return HEAD_SHARE * spent[head] + (1 - HEAD_SHARE) * spent[rest]

    base, cached, uncached = (
        over(FROZEN, FULL),
        spent[FULL] / spent[CACHED],
        spent[FULL] / spent[UNCACHED],
    )
    print(
        f"  over a run with {HEAD_SHARE:.0%} head phase: s3prl {base:.2f} s per update (its encoder frozen in that phase)"
    )
    for what, head, rest in (
        ("front end cached", HEAD, CACHED),
        ("and head phase without dropout", QUIET, CACHED),
    ):
        print(f"    ours, {what:32} {over(head, rest):.2f} s: {base / over(head, rest):.2f} times")
    fast = told(
        cached >= TARGET,
        f"{name}: an update with the front end cached: {cached:.2f} times s3prl's speed >= {TARGET:g}",
    )
    return fast & told(
        uncached >= 1, f"{name}: an update with the front end not cached: {uncached:.2f} times >= 1"
    )


def told(passed: bool, line: str) -> bool:
    """Prints a line with its verdict."""
    print(f"{'PASS' if passed else 'FAIL'}  {line}", flush=True)
    return passed


def main() -> None:
    """Prints the tables asked for, or both; leaves with 1 when a line fails."""
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
    from speechft_ray.cluster.connect import (
        WORKER_ENVIRONMENT,
    )  # with Ray, which the children are spared

    options.environment = {
        key: value for key, value in WORKER_ENVIRONMENT.items() if key.startswith("MALLOC")
    }
    print(
        f"HuBERT, front end of 512 channels, {options.layers} layers x 768, random weights, {options.threads} threads, CPU"
    )
    with tempfile.TemporaryDirectory() as folder:
        options.start = Path(folder) / "start.pt"
        write_start(options.layers, options.start)
        passed = [compare(name, options) for name in options.settings or SETTINGS]
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
