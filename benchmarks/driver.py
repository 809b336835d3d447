"""Measures what the driver of a sweep costs: CPU seconds and peak memory, by number of evaluations.

    python benchmarks/driver.py [--evaluations 1000 5000] [--folder DIR]

Jobs do nothing: an executor in this process writes a made-up manifest for each, whose own time is
subtracted. All else is real: the plan, the scheduler, the log of results, the report. MLflow is
left out, since it has a thread of its own. Each size is a process of its own, with 4 tasks and as
many merged encoders as that takes. ``run`` is a whole run without its plan, ``rerun`` the same
command again.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TASKS = ("pr", "sid", "er", "ks")
METRIC_OF = {"pr": "per", "sid": "accuracy", "er": "accuracy", "ks": "accuracy"}
BATCH = 16
"""Outcomes that come at once."""


def make_space(evaluations: int) -> dict[str, Any]:
    """Returns a space with so many evaluations, about."""
    merges = evaluations // len(TASKS)
    objective = {
        "head": "frame",
        "corpus": {"options": {"part": "phones", "speakers": 2, "train": 4, "dev": 2, "test": 0}},
        "column": "phones",
    }
    alphas = [round((index + 1) / (merges + 1), 6) for index in range(merges)]
    return {
        "name": "load",
        "encoder": "tiny_hubert",
        "finetune": [{"name": "phones", "objectives": [objective], "updates": 10}],
        "merge": [{"alpha": {"grid": alphas}}],
        "evaluate": [
            {
                "task": task,
                "corpus": {"options": {"part": task, "train": 40, "dev": 10, "test": 10}},
                "updates": 5,
                "seeds": 2,
            }
            for task in TASKS
        ],
        "score": {
            "zero": "measured",
            "topline": {f"{task}.{METRIC_OF[task]}": 0 if task == "pr" else 100 for task in TASKS},
        },
    }


def make_facts(job: Any) -> dict[str, Any]:
    """Returns made-up facts of a job."""
    if job.stage != "evaluate":
        return dict(job.payload) if job.stage == "merge" else {"curve": [[1, {"loss": 1.0}]]}
    task = job.payload["spec"]["task"]
    number = int(job.fingerprint[:6], 16) % 1000 / 20 + 20
    scores = [
        {"metric": f"{task}.{METRIC_OF[task]}", "split": split, "values": [number, number + 1]}
        for split in ("dev", "test")
    ]
    return {**job.payload, "scores": scores}


class NoWork:
    """An executor whose jobs only write their manifests; counts the CPU seconds of that."""

    def __init__(self, storage: Path) -> None:
        self.storage = storage
        self.jobs: list[Any] = []
        self.cpu_seconds = 0.0

    def submit(self, job: Any) -> None:
        """Queues a job."""
        self.jobs.append(job)

    def outcomes(self, timeout_seconds: float) -> list[Any]:
        """Ends the next jobs."""
        from speechft_ray.core.records import Outcome
        from speechft_ray.core.store import add_checksum

        begin = time.process_time()
        ended = []
        jobs, self.jobs = self.jobs[:BATCH], self.jobs[BATCH:]
        for job in jobs:
            folder = self.storage / job.stage / job.fingerprint
            folder.mkdir(parents=True)
            facts = add_checksum({**make_facts(job), "files": {}})
            (folder / "manifest.json").write_text(json.dumps(facts))
            ended.append(Outcome(stage=job.stage, fingerprint=job.fingerprint, label=job.label))
        self.cpu_seconds += time.process_time() - begin
        return ended

    def slots(self, job: Any) -> int:
        """Returns 64."""
        return 64

    def progress(self) -> Mapping[str, Any]:
        """Nothing is seen running."""
        return {}

    def stop(self) -> None:
        """Nothing runs."""


def measure(evaluations: int, folder: Path) -> dict[str, float]:
    """Plans, runs and runs again; returns CPU seconds, jobs and the peak memory of this process."""
    from speechft_ray.commands import parts, results, sweep
    from speechft_ray.core.space import parse_space

    storage = folder / "runs"
    executor = NoWork(storage)
    for module in (parts, sys.modules.get("speechft_ray.commands.executors")):
        if module is not None:
            vars(module)["open_executor"] = lambda *arguments, **options: executor
    vars(sweep)["open_trackers"] = lambda *arguments: []
    vars(results)["find_leaks"] = _count_time(vars(results)["find_leaks"])
    spec = parse_space(make_space(evaluations), where="benchmark")
    place = parts.resolve_place(spec, storage=storage)
    figures: dict[str, float] = {}
    for name in ("run", "rerun"):
        begin = time.process_time()
        opened = sweep.open_sweep(spec, place)
        planned = time.process_time()
        sweep.run(opened, None, folder / "report", None, threading.Event())
        figures[f"{name} plan"] = planned - begin
        figures[name] = time.process_time() - planned - executor.cpu_seconds
        figures[f"{name} leaks"] = _seconds.pop()
        executor.cpu_seconds = 0.0
    figures["jobs"] = len(opened.plan.jobs)
    figures["peak MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    return figures


_seconds: list[float] = []


def _count_time(function: Any) -> Any:
    def count(*arguments: Any) -> Any:
        begin = time.process_time()
        result = function(*arguments)
        _seconds.append(time.process_time() - begin)
        return result

    return count


def main() -> None:
    """Measures each size in a process of its own and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--evaluations", type=int, nargs="+", default=[1000, 5000])
    parser.add_argument("--folder", type=Path, help="storage; default: a temporary folder")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            figures = measure(options.evaluations[0], Path(folder))
        print("figures", json.dumps(figures))
        return
    columns = ("jobs", "run plan", "run", "run leaks", "rerun plan", "rerun", "rerun leaks")
    print(f"| evaluations | {' | '.join(columns)} | run, ms a job | peak MB |")
    print("|---" * (len(columns) + 3) + "|")
    for evaluations in options.evaluations:
        place = ["--folder", str(options.folder)] if options.folder else []
        command = [sys.executable, __file__, "--child", "--evaluations", str(evaluations), *place]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        (line,) = (line for line in done.stdout.splitlines() if line.startswith("figures"))
        figures = json.loads(line.removeprefix("figures"))
        cells = [f"{figures[name]:.3g}" if name != "jobs" else figures[name] for name in columns]
        each = 1e3 * figures["run"] / figures["jobs"]
        print(
            f"| {evaluations} | {' | '.join(map(str, cells))} | {each:.2f} "
            f"| {figures['peak MB']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
