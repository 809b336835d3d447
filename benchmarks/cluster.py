"""How well is a cluster used while its workers are killed? 64 simulated GPUs, the real plan, the
real scheduler and the real rules for retries and saved states.

    python -m benchmarks.cluster [--workers 64] [--kills 0 10 30 60] [--tail lognormal pareto]
        [--draws 10]

The executor below is the only part that is not real: it has a clock of its own, draws the time of
each job from its fingerprint, and kills each worker at the times of a Poisson process, so many per
cent of them an hour. A killed worker is back after ``DOWN_SECONDS``; its job goes on from its last
saved state. A free worker takes what Ray would start (tried on ray 2.60): a lost task, then a
merge, then evaluations in their order; and a lost fine-tuning, which waits for a placement group,
when no task queues. The makespan is compared with list scheduling of the same jobs without kills,
where a free worker takes the first job of the plan that can start, and with the same scheduler
without kills. ``bound`` is the larger of all work over all workers and the longest chain of jobs.
``repeated`` is work beyond that of the jobs, as a share of theirs. All figures are means over draws
of the times.
"""

from __future__ import annotations

import argparse
import enum
import heapq
import itertools
import math
import random
import statistics
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.search_idle import MemoryStore, Silent
from speechft_ray.cluster.losses import Losses
from speechft_ray.core.records import Job, Limits, Outcome
from speechft_ray.core.space import parse_space
from speechft_ray.core.specs import CorpusSpec
from speechft_ray.finetuning import loop as finetuning
from speechft_ray.superb import saved_work
from speechft_ray.sweep.inputs import Inputs
from speechft_ray.sweep.plan import Plan, make_plan
from speechft_ray.sweep.protocols import Progress
from speechft_ray.sweep.scheduler import JobScheduler, jobs_to_run, run_jobs

MINUTES = {"corpus": 1.0, "finetune": 40.0, "merge": 0.5, "pr": 12.0, "sid": 8.0, "ks": 4.0}
"""Median minutes of a job, by stage and of evaluations by task."""

SIGMAS = {"corpus": 0.0, "finetune": 0.4, "merge": 0.2, "evaluate": 1.0}
"""Of log-normal times. Of evaluations, the 99th percentile is 10 times the median."""

PARETO_SHAPE = 2.0
"""Of the Pareto times of evaluations: their variance is infinite."""

MOST_MEDIANS = 40.0
"""Longest time of a job, in medians."""

SAVE_SECONDS = {"finetune": 3.0, "evaluate": 0.3}
"""How long it takes to write a state, 1 GB and 30 MB."""

DOWN_SECONDS = 60.0
"""From a kill until another worker is there: it is noticed, a process starts, torch is imported."""

RESUME_SECONDS = 10.0
"""What a job that was lost does before it works again: it reads its encoder and its state."""


def make_space(finetunings: int, alphas: int) -> dict[str, Any]:
    """Returns a space with so many fine-tuning runs and merges of each."""
    objective = {"head": "frame", "corpus": {"options": {"part": "phones"}}, "column": "phones"}
    seeds = {"grid": list(range(finetunings))}
    grid = [round((index + 1) / alphas, 4) for index in range(alphas)]
    tasks = [task for task in MINUTES if task not in SIGMAS]
    return {
        "name": "cluster",
        "finetune": [{"name": "phones", "objectives": [objective], "updates": 10, "seed": seeds}],
        "merge": [{"alpha": {"grid": grid}}],
        "evaluate": [
            {"task": task, "corpus": {"options": {"part": task}}, "updates": 5} for task in tasks
        ],
    }


def plan_jobs(finetunings: int, alphas: int) -> Plan:
    """Plans it."""

    def identify(spec: CorpusSpec) -> tuple[str, bool]:
        return f"corpus-{spec.options['part']}", True

    spec = parse_space(make_space(finetunings, alphas), "cluster")
    return make_plan(spec, Inputs(encoder="encoder", corpus=identify))


def draw_seconds(job: Job, tail: str, seed: int) -> float:
    """Returns the time of a job without kills."""
    source = random.Random(f"{seed} {job.fingerprint}")
    spec: Any = job.payload.get("spec")
    kind = str(spec["task"]) if job.stage == "evaluate" else job.stage
    if job.stage == "evaluate" and tail == "pareto":
        factor = source.paretovariate(PARETO_SHAPE) / 2 ** (1 / PARETO_SHAPE)
    else:
        factor = math.exp(SIGMAS[job.stage] * source.gauss(0.0, 1.0))
    return 60.0 * MINUTES[kind] * min(factor, MOST_MEDIANS)


def find_saved(stage: str, seconds: float) -> float:
    """Returns how much of the work of a life of so many seconds its last state has, by the rules
    of fine-tuning and of evaluations; other jobs save nothing."""
    save = SAVE_SECONDS.get(stage)
    saved = 0.0
    while save is not None:
        moment, interval, before = saved, math.inf, 0.0
        while interval - before > 1e-3:  # the interval grows with the time at which it is asked for
            before = 0.0 if interval == math.inf else interval
            interval = (
                saved_work.choose_interval(moment, save)
                if stage == "evaluate"
                else finetuning.choose_interval(save)
            )
            moment = saved + interval
        if moment + save > seconds:
            break
        saved = moment
    return saved


class Turn(enum.IntEnum):
    """The order in which jobs that wait are started."""

    LOST_TASK = 0
    FIRST = 1
    EVALUATION = 2
    LOST_TRIAL = 3


class Life(NamedTuple):
    """A job on a worker."""

    job: Job
    began: float
    ends: float


class KilledCluster:
    """An executor with a clock of its own, whose workers are killed."""

    def __init__(
        self,
        store: MemoryStore,
        seconds: Mapping[str, float],
        workers: int,
        kills_per_hour: float,
        seed: int = 0,
        limits: Limits = Limits(),  # noqa: B008  # frozen
    ) -> None:
        """``seconds``: the time of each job; ``kills_per_hour``: of each worker, on average."""
        self.now = self.busy_seconds = 0.0
        self.kills = 0
        self._store, self._seconds, self._workers = store, seconds, workers
        self._rate = kills_per_hour / 3600
        self._random = random.Random(seed)
        self._losses = Losses(limits.retries)
        self._queues: tuple[deque[Job], ...] = tuple(deque() for _ in Turn)
        self._idle = set(range(workers))
        self._lives: dict[int, Life] = {}
        self._saved: dict[str, float] = {}
        """Seconds of work in the last state of a job that was lost."""
        self._ended: list[Outcome] = []
        self._count = itertools.count()
        self._events: list[tuple[float, int, str, int]] = []
        for worker in range(workers):
            self._plan_kill(worker)

    def submit(self, job: Job) -> None:
        """Queues a job."""
        turn = Turn.EVALUATION if job.stage == "evaluate" else Turn.FIRST
        self._queues[turn].append(job)

    def outcomes(self, timeout_seconds: float) -> list[Outcome]:
        """Lets the clock run until a job ends."""
        self._start()
        while not self._ended:
            self.now, _, event, worker = heapq.heappop(self._events)
            if event == "kill":
                self._kill(worker)
            elif event == "back":
                self._idle.add(worker)
            elif worker in self._lives and self._lives[worker].ends == self.now:
                self._end(worker)
            self._start()
        ended, self._ended = self._ended, []
        return ended

    def slots(self, job: Job) -> int:
        """Returns the workers."""
        return self._workers

    def progress(self) -> Mapping[str, Progress]:
        """Nothing to see."""
        return {}

    def stop(self) -> None:
        """Nothing to stop."""

    def _start(self) -> None:
        while self._idle and (queue := next(filter(None, self._queues), None)):
            worker, job = self._idle.pop(), queue.popleft()
            left = self._seconds[job.fingerprint]
            if job.fingerprint in self._saved:
                left += RESUME_SECONDS - self._saved[job.fingerprint]
            self._lives[worker] = Life(job, self.now, self.now + left)
            self._plan(self.now + left, "end", worker)

    def _end(self, worker: int) -> None:
        job = self._leave(worker).job
        self._idle.add(worker)
        with self._store.publish(job.stage, job.fingerprint, {}):
            pass
        self._ended.append(self._outcome(job))

    def _kill(self, worker: int) -> None:
        self._plan_kill(worker)
        if worker not in self._idle and worker not in self._lives:
            return  # it is not back yet
        self.kills += 1
        self._plan(self.now + DOWN_SECONDS, "back", worker)
        self._idle.discard(worker)
        if worker in self._lives:
            life = self._leave(worker)
            self._lose(life.job, self.now - life.began)

    def _lose(self, job: Job, seconds: float) -> None:
        key = job.fingerprint
        before = self._saved.get(key, 0.0)
        worked = max(0.0, seconds - (RESUME_SECONDS if key in self._saved else 0.0))
        self._losses.see({key: Progress(before + worked, self._seconds[key], {})})
        self._saved[key] = before + find_saved(job.stage, worked)
        if self._losses.count(key) > self._losses.retries:
            self._ended.append(self._outcome(job, "lost too often"))
        else:
            turn = Turn.LOST_TRIAL if job.stage == "finetune" else Turn.LOST_TASK
            self._queues[turn].append(job)

    def _leave(self, worker: int) -> Life:
        life = self._lives.pop(worker)
        self.busy_seconds += self.now - life.began
        return life

    def _outcome(self, job: Job, error: str | None = None) -> Outcome:
        return Outcome(stage=job.stage, fingerprint=job.fingerprint, label=job.label, error=error)

    def _plan_kill(self, worker: int) -> None:
        if self._rate:
            self._plan(self.now + self._random.expovariate(self._rate), "kill", worker)

    def _plan(self, moment: float, event: str, worker: int) -> None:
        heapq.heappush(self._events, (moment, next(self._count), event, worker))


def schedule_list(jobs: Mapping[str, Job], seconds: Mapping[str, float], workers: int) -> float:
    """Returns the makespan of list scheduling: a free worker takes the first job whose needs have
    ended."""
    place = {key: number for number, key in enumerate(jobs)}
    keys = list(jobs)
    missing = {key: sum(need in jobs for need in job.needs) for key, job in jobs.items()}
    followers: dict[str, list[str]] = {key: [] for key in jobs}
    for key, job in jobs.items():
        for need in job.needs:
            if need in jobs:
                followers[need].append(key)
    ready = [place[key] for key in keys if not missing[key]]
    heapq.heapify(ready)
    running: list[tuple[float, int]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < workers:
            number = heapq.heappop(ready)
            heapq.heappush(running, (now + seconds[keys[number]], number))
        now, number = heapq.heappop(running)
        for key in followers[keys[number]]:
            missing[key] -= 1
            if not missing[key]:
                heapq.heappush(ready, place[key])
    return now


def find_bound(jobs: Mapping[str, Job], seconds: Mapping[str, float], workers: int) -> float:
    """Returns what no schedule can be shorter than: all work over all workers, or the longest
    chain. ``jobs`` come after those that they need."""
    chain: dict[str, float] = {}
    for key, job in jobs.items():
        chain[key] = seconds[key] + max((chain.get(need, 0.0) for need in job.needs), default=0.0)
    return max(sum(seconds[key] for key in jobs) / workers, *chain.values())


class Result(NamedTuple):
    """One simulated sweep. Its makespan in hours, and over other makespans of the same jobs."""

    hours: float
    over_list: float
    """Over list scheduling without kills."""
    over_undisturbed: float
    """Over the same scheduler without kills."""
    over_bound: float
    repeated: float
    """Work beyond that of the jobs, as a share of theirs."""
    kills: int
    failed: int


FIELDS = Result._fields
HEAD = """\
| times | killed an hour | kills | hours | / list | / undisturbed | / bound | repeated | failed |
|---|---:|---:|---:|---:|---:|---:|---:|---:|"""


def run_killed(
    plan: Plan, seconds: Mapping[str, float], workers: int, kills_per_hour: float, seed: int
) -> tuple[KilledCluster, int]:
    """Runs the plan on a cluster whose workers are killed so often; returns the cluster and how
    many jobs failed."""
    store: Any = MemoryStore()
    cluster = KilledCluster(store, seconds, workers, kills_per_hour, seed)
    scheduler = JobScheduler(cluster, Silent(), lambda outcome: None, threading.Event())
    run_jobs(plan, store, scheduler)
    return cluster, len(scheduler.failed)


def simulate(
    plan: Plan, workers: int, rates: Sequence[float], tail: str, seed: int
) -> list[Result]:
    """Runs the plan at each rate of kills, with the same times of all jobs."""
    store: Any = MemoryStore()
    jobs = jobs_to_run(plan, store)
    seconds = {key: draw_seconds(job, tail, seed) for key, job in jobs.items()}
    of_list, bound = (find(jobs, seconds, workers) for find in (schedule_list, find_bound))
    undisturbed, _ = run_killed(plan, seconds, workers, 0.0, seed)
    results = []
    for rate in rates:
        cluster, failed = run_killed(plan, seconds, workers, rate, seed)
        results.append(
            Result(
                hours=cluster.now / 3600,
                over_list=cluster.now / of_list,
                over_undisturbed=cluster.now / undisturbed.now,
                over_bound=cluster.now / bound,
                repeated=cluster.busy_seconds / sum(seconds.values()) - 1,
                kills=cluster.kills,
                failed=failed,
            )
        )
    return results


def format_row(tail: str, percent: float, results: Sequence[Result]) -> str:
    """Returns the row of the table of one rate: means over draws, and the standard error of the
    first ratio."""
    mean = {name: statistics.fmean(getattr(item, name) for item in results) for name in FIELDS}
    ratios = [item.over_list for item in results]
    error = statistics.stdev(ratios) / math.sqrt(len(ratios)) if len(ratios) > 1 else 0.0
    return (
        f"| {tail} | {percent:g} % | {mean['kills']:.0f} | {mean['hours']:.2f} "
        f"| {mean['over_list']:.3f} ± {error:.3f} | {mean['over_undisturbed']:.3f} "
        f"| {mean['over_bound']:.3f} | {mean['repeated']:.2%} | {mean['failed']:g} |"
    )


def main() -> None:
    """Prints one row for each tail and kill rate."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--finetunings", type=int, default=24)
    parser.add_argument("--alphas", type=int, default=20)
    parser.add_argument(
        "--kills", type=float, nargs="+", default=[0, 10, 30, 60], help="per cent an hour"
    )
    parser.add_argument("--tail", nargs="+", default=["lognormal", "pareto"])
    parser.add_argument("--draws", type=int, default=10)
    options = parser.parse_args()
    plan = plan_jobs(options.finetunings, options.alphas)
    print(f"{len(plan.jobs)} jobs on {options.workers} workers, {options.draws} draws of all times")
    print(HEAD)
    for tail in options.tail:
        rates = [percent / 100 for percent in options.kills]
        draws = [
            simulate(plan, options.workers, rates, tail, seed) for seed in range(options.draws)
        ]
        for percent, results in zip(options.kills, zip(*draws, strict=True), strict=True):
            print(format_row(tail, percent, results), flush=True)


if __name__ == "__main__":
    main()
