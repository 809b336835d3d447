"""Measures what trackers cost a sweep: the driver's CPU, the time of MLflow, and the makespan.

    python -m benchmarks.tracker [--merges 300] [--seconds 1.5] [--slots 16]

Jobs are stand-ins that take a fixed time, report a point of their learning curve 30 times, and
write a made-up manifest. All else is real: plan, scheduler, publisher, the background writer, a
fresh sqlite database, the report. ``hanging`` is MLflow at a server that accepts connections and
never answers. Every tracker is a process of its own.

``jobs s`` is the time until the last job has ended, ``then s`` that of the report and the wait for
the tracker, ``wait s`` the latter alone. Driver CPU is that of its main thread until the last job;
an event is a finished job or the progress of a job that was looked at. The seconds of MLflow are
those of its thread.
"""

from __future__ import annotations

import argparse
import json
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.driver import TASKS, make_facts, make_space

POINTS = 30
FINETUNE_VALUES = [f"distance/layer_{index:02d}" for index in range(12)]


class StandIns:
    """An executor whose jobs take time and nothing else; so many run at once."""

    def __init__(self, storage: Path, slots: int, seconds: Mapping[str, float]) -> None:
        self.storage, self.seconds = storage, seconds
        self.slots_count = slots
        self.waiting: list[Any] = []
        self.running: dict[str, tuple[Any, float]] = {}
        self.reported: dict[str, int] = {}
        self.own_cpu = 0.0
        self.events = 0

    def submit(self, job: Any) -> None:
        """Queues a job."""
        self.waiting.append(job)

    def outcomes(self, timeout_seconds: float) -> list[Any]:
        """Waits for the next job that ends."""
        from speechft_ray.core.records import Outcome

        while self.waiting and len(self.running) < self.slots_count:
            job = self.waiting.pop(0)
            self.running[job.fingerprint] = (job, time.monotonic())
        ends = [begin + self.seconds[job.stage] for job, begin in self.running.values()]
        time.sleep(max(0.0, min([timeout_seconds, *(end - time.monotonic() for end in ends)])))
        begin_cpu = time.thread_time()
        ended = []
        for key, (job, begin) in list(self.running.items()):
            if time.monotonic() - begin < self.seconds[job.stage]:
                continue
            del self.running[key]
            folder = self.storage / job.stage / key
            folder.mkdir(parents=True)
            facts = {**make_facts(job), "files": {}}
            if job.stage in ("finetune", "evaluate"):
                names = {"probe/loss": "loss", "train/loss": "loss"}
                facts["curve"] = [
                    [number, {names.get(name, name): value for name, value in values.items()}]
                    for number, values in (make_point(job, item) for item in range(POINTS))
                ]
            (folder / "manifest.json").write_text(json.dumps(facts))
            ended.append(Outcome(stage=job.stage, fingerprint=key, label=job.label, seconds=1.0))
        self.events += len(ended)
        self.own_cpu += time.thread_time() - begin_cpu
        return ended

    def progress(self) -> Mapping[str, Any]:
        """The running jobs with their new points."""
        from speechft_ray.sweep.protocols import Progress

        begin_cpu = time.thread_time()
        progress = {}
        for key, (job, begin) in self.running.items():
            share = min(1.0, (time.monotonic() - begin) / max(1e-9, self.seconds[job.stage]))
            before, now = self.reported.get(key, 0), int(share * POINTS)
            self.reported[key] = now
            has_curve = job.stage in ("finetune", "evaluate")
            points = [make_point(job, number) for number in range(before, now)] if has_curve else []
            progress[key] = Progress(now, POINTS, points[-1][1] if points else {}, points)
        self.events += len(progress)
        self.own_cpu += time.thread_time() - begin_cpu
        return progress

    def slots(self, job: Any) -> int:
        """Returns the number of slots."""
        return self.slots_count

    def stop(self) -> None:
        """Nothing runs."""


def make_point(job: Any, number: int) -> tuple[int, dict[str, float]]:
    """Returns a made-up point of a curve."""
    if job.stage == "finetune":
        values = {"train/loss": 9.0 / (number + 1), "train/lr": 1e-4, "train/grad_norm": 1.0}
        return number + 1, values | dict.fromkeys(FINETUNE_VALUES, 0.1 * number)
    return number + 1, {"probe/loss": 9.0 / (number + 1)}


class Timed:
    """A tracker that counts its calls, their seconds and the CPU seconds of its thread."""

    def __init__(self, tracker: Any) -> None:
        self.tracker, self.calls, self.seconds, self.cpu = tracker, 0, 0.0, 0.0

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.tracker, name)

        def call(*arguments: Any) -> Any:
            begin, begin_cpu = time.monotonic(), time.thread_time()
            try:
                return function(*arguments)
            finally:
                self.calls += 1
                self.seconds += time.monotonic() - begin
                self.cpu += time.thread_time() - begin_cpu

        return call


@contextmanager
def open_hanging_server() -> Iterator[str]:
    """Yields the address of a server that accepts connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        open_connections: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    open_connections.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def measure(options: argparse.Namespace, folder: Path, uri: str | None) -> dict[str, float]:
    """Runs the sweep once; returns seconds and counts."""
    from speechft_ray.commands import parts, sweep
    from speechft_ray.core.space import parse_space
    from speechft_ray.tracking.background import BackgroundTracker
    from speechft_ray.tracking.mlflow import MlflowTracker

    storage = folder / "runs"
    each = {"corpus": 0.0, "merge": 0.0, "finetune": options.seconds, "evaluate": options.seconds}
    executor, timed = StandIns(storage, options.slots, each), Timed(MlflowTracker(uri, storage))
    vars(sys.modules["speechft_ray.commands.executors"])["open_executor"] = lambda *_: executor
    trackers = [] if options.trackers == ["none"] else [BackgroundTracker(timed)]
    vars(sweep)["open_trackers"] = lambda *_: trackers
    spec = parse_space(make_space(options.merges * len(TASKS)), where="benchmark")
    opened = sweep.open_sweep(spec, parts.resolve_place(spec, storage=storage))
    waited = []
    wait = BackgroundTracker._wait

    def count_wait(tracker: BackgroundTracker, in_all: float = float("inf")) -> None:
        began = time.monotonic()
        try:
            wait(tracker, in_all)
        finally:
            waited.append(time.monotonic() - began)

    BackgroundTracker._wait = count_wait  # type: ignore[assignment, method-assign]
    stop = executor.stop
    ended: dict[str, float] = {}

    def note_end() -> None:
        ended["wall"], ended["cpu"] = time.monotonic(), time.thread_time()
        stop()

    vars(executor)["stop"] = note_end
    begin, begin_cpu = time.monotonic(), time.thread_time()
    sweep.run(opened, None, folder / "report", None, threading.Event())
    figures = {
        "jobs s": ended["wall"] - begin,
        "then s": time.monotonic() - ended["wall"],
        "wait s": sum(waited),
        "driver CPU s": ended["cpu"] - begin_cpu - executor.own_cpu,
        "events": executor.events,
        "calls": timed.calls,
        "MLflow s": timed.seconds,
        "MLflow CPU s": timed.cpu,
    }
    figures["driver ms an event"] = 1e3 * figures["driver CPU s"] / max(1, executor.events)
    if uri is None and trackers:
        with closing(sqlite3.connect(storage / "mlflow.db")) as database:
            for table in ("runs", "metrics"):
                (count,) = database.execute(f"select count(*) from {table}").fetchone()
                figures[table] = count
    return figures


def main() -> None:
    """Measures each tracker in a process of its own and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--merges", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each tuning and evaluation")
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--trackers", nargs="+", default=["none", "mlflow", "hanging"])
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        with tempfile.TemporaryDirectory() as folder, open_hanging_server() as address:
            uri = address if options.trackers == ["hanging"] else None
            print("figures", json.dumps(measure(options, Path(folder), uri)), flush=True)
        return
    columns = (
        "jobs s",
        "then s",
        "wait s",
        "driver CPU s",
        "events",
        "driver ms an event",
        "calls",
        "MLflow s",
        "MLflow CPU s",
        "runs",
        "metrics",
    )
    print(f"| tracker | {' | '.join(columns)} |")
    print("|---" * (len(columns) + 1) + "|")
    sizes = ["--merges", str(options.merges), "--seconds", str(options.seconds)]
    for tracker in options.trackers:
        command = [sys.executable, "-m", "benchmarks.tracker", "--child", "--trackers", tracker]
        done = subprocess.run(
            [*command, *sizes, "--slots", str(options.slots)],
            capture_output=True,
            text=True,
            check=False,
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("figures")]
        if not lines:
            raise SystemExit(done.stderr)
        figures = json.loads(lines[0].removeprefix("figures"))
        cells = [f"{figures[name]:.4g}" if name in figures else "" for name in columns]
        print(f"| {tracker} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
