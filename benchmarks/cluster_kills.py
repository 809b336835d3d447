"""The sweep of benchmarks/cluster.py on real Ray, with stand-in jobs that sleep and real kills.

    python -m benchmarks.cluster_kills [--gpus 8] [--kills 0 30] [--faster 24]

A local cluster has so many made-up GPUs, and each job takes one. A job sleeps for the time that
benchmarks/cluster.py draws for it, ``--faster`` times shortened, reports its progress, saves a
state when fine-tuning and evaluations would, and resumes from it. A thread kills workers with
SIGKILL, at random moments and drawn at random from those that have a job, ``--kills`` per cent of
them an hour of the long times: with ``--faster 24``, 30 per cent is one in 8 minutes of each
worker. Plan, scheduler, executor, retries, Tune and the storage are real; so is the time that Ray
takes to start another worker, which is not shortened. The makespan, from the first job on, is
compared with list scheduling of the same jobs without kills and without any such time. ``repeated``
is the work of all lives beyond that of the jobs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.cluster import draw_seconds, plan_jobs, schedule_list
from benchmarks.search_idle import Silent
from speechft_ray.cluster.connect import connect
from speechft_ray.cluster.executor import RayExecutor
from speechft_ray.core.files import write_json
from speechft_ray.core.processes import find_start, kill_process
from speechft_ray.core.records import Job, Place
from speechft_ray.core.resources import ResourceRequest
from speechft_ray.core.store import Store
from speechft_ray.finetuning import loop as finetuning
from speechft_ray.superb import saved_work
from speechft_ray.sweep.plan import Plan
from speechft_ray.sweep.protocols import ReportProgress
from speechft_ray.sweep.scheduler import JobScheduler, jobs_to_run, run_jobs

FASTER = "SPEECHFT_BENCHMARK_FASTER"
"""The environment variable that tells workers ``--faster``."""

STEP_SECONDS = 0.1
"""Between two looks of a job at the clock; what a kill costs is known as exactly."""

HEAD = """\
| kills an hour | kills | makespan | list scheduling | ratio | repeated | failed |
|---|---:|---:|---:|---:|---:|---:|"""


def find_seconds(job: Job) -> float:
    """Returns how long a job takes here."""
    return draw_seconds(job, "lognormal", seed=0) / float(os.environ[FASTER])


def perform(job: Job, place: Place, report: ReportProgress) -> Mapping[str, Any]:
    """Sleeps for the time of the job, from the last saved state on."""
    store, total = Store(Path(place.storage)), find_seconds(job)
    folder = Path(place.storage) / "lives" / job.fingerprint
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / "state.json"
    first = json.loads(state.read_text()) if state.exists() else 0.0
    life = folder / f"life-{os.getpid()}-{time.monotonic_ns()}.json"
    began = saved_at = time.monotonic()
    done = first
    while done < total:
        time.sleep(min(STEP_SECONDS, total - done))
        now = time.monotonic()
        done = first + now - began
        write_json(life, {"pid": os.getpid(), "seconds": done - first})
        report({"done": min(done, total), "total": total})
        if now - saved_at >= _choose_interval(job.stage, now - began):
            write_json(state, done)
            saved_at = now
    write_json(life, {"pid": None, "seconds": done - first})
    with store.publish(job.stage, job.fingerprint, {}):
        pass
    return {}


def _choose_interval(stage: str, seconds: float) -> float:
    if stage == "evaluate":
        return saved_work.choose_interval(seconds, 0.0)
    return finetuning.choose_interval(0.0) if stage == "finetune" else float("inf")


def read_lives(storage: Path) -> list[dict[str, Any]]:
    """Returns the process and the work of every life; a process that has ended its job is None."""
    return [json.loads(path.read_text()) for path in storage.glob("lives/*/life-*.json")]


class Killer(threading.Thread):
    """Kills workers that have a job."""

    def __init__(self, storage: Path, kills_per_second: float) -> None:
        """``kills_per_second``: of one worker."""
        super().__init__(daemon=True)
        self.kills = 0
        self.stop = threading.Event()
        self._storage, self._rate = storage, kills_per_second
        self._random = random.Random(0)

    def run(self) -> None:
        """Looks every second."""
        while not self.stop.wait(1.0):
            pids = {life["pid"] for life in read_lives(self._storage)} - {None}
            for pid in sorted(pids):
                started = find_start(pid)
                if started is not None and self._random.random() < self._rate:
                    kill_process(pid, started)
                    self.kills += 1


def measure(plan: Plan, gpus: int, kills_per_second: float) -> str:
    """Runs the plan and returns the rest of its row."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        jobs = jobs_to_run(plan, store)
        seconds = {key: find_seconds(job) for key, job in jobs.items()}
        of_list = schedule_list(jobs, seconds, gpus)
        cluster = connect("local", cpus=2 * gpus, gpus=gpus, store_bytes=200 << 20)
        executor = RayExecutor(perform, Place(storage=folder, encoder="none"), cluster=cluster)
        killer = Killer(Path(folder), kills_per_second)
        killer.start()
        began = time.monotonic()
        scheduler = JobScheduler(executor, Silent(), lambda outcome: None, threading.Event())
        run_jobs(plan, store, scheduler)
        makespan = time.monotonic() - began
        killer.stop.set()
        executor.stop()
        worked = sum(life["seconds"] for life in read_lives(Path(folder)))
    return (
        f"{killer.kills} | {makespan:.0f} s | {of_list:.0f} s | {makespan / of_list:.3f} "
        f"| {worked / sum(seconds.values()) - 1:.2%} | {len(scheduler.failed)} |"
    )


def main() -> None:
    """Prints one row for each rate of kills."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--finetunings", type=int, default=4)
    parser.add_argument("--alphas", type=int, default=10)
    parser.add_argument("--kills", type=float, nargs="+", default=[0, 30], help="per cent an hour")
    parser.add_argument("--faster", type=float, default=24.0)
    options = parser.parse_args()
    os.environ[FASTER] = str(options.faster)
    plan = plan_jobs(options.finetunings, options.alphas)
    need = {"resources": ResourceRequest(cpus=1, gpus=1)}
    jobs = {key: job.model_copy(update=need) for key, job in plan.jobs.items()}
    plan = replace(plan, jobs=jobs)
    print(f"{len(jobs)} jobs on {options.gpus} made-up GPUs, {options.faster:g} times faster")
    print(HEAD, flush=True)
    for percent in options.kills:
        row = measure(plan, options.gpus, percent / 100 / 3600 * options.faster)
        print(f"| {percent:g} % | {row}", flush=True)


if __name__ == "__main__":
    main()
