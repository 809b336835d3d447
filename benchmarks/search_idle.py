"""How idle is a cluster under a search? 32 simulated workers, heavy-tailed evaluation times, the
real search loop and sampler.

    python benchmarks/search_idle.py [--workers 32] [--trials 2400] [--window 128 192 256]
        [--random-share 0 0.2] [--sampler tpe] [--sigma 0.8 1.0] [--draws 16]

The executor below is the only part that is not real: it has a clock of its own and makes up the
facts of each evaluation. The same evaluation times are then put through a generation-wise strategy,
which proposes one generation at a time and waits for the slowest of it (within a generation its
workers never wait). The idle share of one search depends on when its few longest evaluations come:
``--draws N`` prints means over N draws of the times instead, of the rule alone, without loop and
sampler, beside a search that starts a proposal whenever a worker is free.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from speechft_ray.core.records import Job, Outcome
from speechft_ray.core.space import parse_space
from speechft_ray.core.specs import CorpusSpec, SweepSpec
from speechft_ray.search.loop import AHEAD_WINDOWS, run_search
from speechft_ray.search.optuna_proposer import OptunaProposer
from speechft_ray.search.plan import SearchPlan, make_search_plan
from speechft_ray.search.trials import Trial, TrialEvaluator
from speechft_ray.sweep.inputs import Inputs
from speechft_ray.sweep.protocols import Progress
from speechft_ray.sweep.scheduler import JobScheduler

TASKS = {"ks": 40.0, "sid": 90.0, "pr": 180.0}
"""Median seconds of one evaluation."""
SIGMAS = (0.8, 1.0)
"""Of the log-normal times: the 99th percentile is 6.4 or 10 times the median, one in a thousand
takes 12 or 22 times it."""


class SimulatedCluster:
    """An executor with so many workers and its own clock: each job takes ``seconds(job)`` and then
    has ``facts(job)``.

    Jobs start in the order of submission, as Ray's do. ``busy_seconds`` is the work done, ``now``
    the time by then.
    """

    def __init__(
        self,
        store: Any,
        workers: int,
        seconds: Callable[[Job], float],
        facts: Callable[[Job], Mapping[str, Any] | None],
    ) -> None:
        self.store, self.workers, self.seconds, self.facts = store, workers, seconds, facts
        self.now = self.busy_seconds = 0.0
        self.done: list[Job] = []
        self._queue: list[Job] = []
        self._running: list[tuple[float, int, Job]] = []
        self._count = 0
        self._spans: list[tuple[float, float]] = []
        self._full_until = 0.0

    def idle(self, whole: bool) -> float:
        """The idle share of all workers: of the whole time, or of the time until work ran out
        (after it some end early)."""
        end = self.now if whole else self._full_until
        busy = sum(min(stop, end) - start for start, stop in self._spans if start < end)
        return 1 - busy / (self.workers * end)

    def submit(self, job: Job) -> None:
        """Queues a job."""
        self._queue.append(job)
        self._start()

    def outcomes(self, timeout_seconds: float) -> list[Outcome]:
        """Lets the clock run to the next end. ``None`` as facts is a failure."""
        self.now, _, job = heapq.heappop(self._running)
        facts = self.facts(job)
        self.done.append(job)
        identity = {"stage": job.stage, "fingerprint": job.fingerprint, "label": job.label}
        self._start()
        if facts is None:
            return [Outcome.model_validate({**identity, "error": "made to fail"})]
        with self.store.publish(job.stage, job.fingerprint, facts):
            pass
        return [Outcome.model_validate({**identity, "facts": dict(facts)})]

    def slots(self, job: Job) -> int:
        """The workers."""
        return self.workers

    def progress(self) -> Mapping[str, Progress]:
        """Nothing to see."""
        return {}

    def stop(self) -> None:
        """Nothing to stop."""

    def _start(self) -> None:
        while self._queue and len(self._running) < self.workers:
            job, self._count = self._queue.pop(0), self._count + 1
            seconds = self.seconds(job)
            self.busy_seconds += seconds
            self._spans.append((self.now, self.now + seconds))
            heapq.heappush(self._running, (self.now + seconds, self._count, job))
            if len(self._running) == self.workers:
                self._full_until = self.now


class MemoryStore:
    """As much of a store as the loop needs."""

    def __init__(self) -> None:
        self.units: dict[tuple[str, str], dict[str, Any]] = {}

    def is_complete(self, stage: str, fingerprint: str) -> bool:
        """Whether the unit is there."""
        return (stage, fingerprint) in self.units

    def manifest(self, stage: str, fingerprint: str) -> dict[str, Any]:
        """Its facts."""
        return self.units[stage, fingerprint]

    def clear_work(self, stage: str, fingerprint: str) -> None:
        """It keeps no unfinished work."""

    @contextmanager
    def publish(self, stage: str, fingerprint: str, facts: Mapping[str, Any]) -> Iterator[None]:
        """Adds it."""
        yield
        self.units[stage, fingerprint] = dict(facts)


class Silent:
    """A observer and an observer that do nothing."""

    def on_job_start(self, job: Job) -> None: ...
    def on_job_end(self, outcome: Outcome) -> None: ...
    def on_progress(self, progress: Mapping[str, Progress]) -> None: ...
    def on_trial_start(self, trial: Trial) -> None: ...
    def on_trial_end(self, trial: Trial, evaluator: TrialEvaluator) -> None: ...
    def on_result_reported(self, trial: Trial) -> None: ...


def spec_of(trials: int, window: int, share: float = 0.0, sampler: str = "tpe") -> SweepSpec:
    """A search over alpha, method and density on three tasks."""
    corpus = {"name": "synthetic", "options": {"part": "phones"}}
    search = {
        "trials": trials,
        "max_concurrent": window,
        "random_share": share,
        "stop_early": "none",
        "axes": {
            "alpha": {"uniform": [0, 1]},
            "method": {"choice": ["linear", "ties"]},
            "ties": {"density": {"uniform": [0.05, 1]}},
        },
    }
    raw = {
        "name": "idle",
        "finetune": [
            {
                "name": "narrow",
                "objectives": [{"head": "frame", "corpus": corpus, "column": "x"}],
                "updates": 10,
            }
        ],
        "search": search,
        "evaluate": [
            {"task": task, "corpus": {"options": {"part": task}}, "updates": 5} for task in TASKS
        ],
    }
    spec = parse_space(raw, "search_idle")
    assert spec.search is not None
    return spec.model_copy(update={"search": spec.search.model_copy(update={"sampler": sampler})})


def plan_of(spec: SweepSpec) -> SearchPlan:
    """Plans it on corpora that need not be made."""

    def corpus(item: CorpusSpec) -> tuple[str, bool]:
        return f"corpus-{item.options['part']}", False

    return make_search_plan(spec, Inputs(encoder="encoder", corpus=corpus), depth=6)


def evaluation_seconds(job: Job, sigma: float) -> float:
    """A heavy-tailed time that depends on the evaluation alone; nothing else takes time."""
    if job.stage != "evaluate":
        return 0.0
    source = random.Random(job.fingerprint)
    median = TASKS[str(job.payload["spec"]["task"])]  # type: ignore[call-overload, index]
    return median * math.exp(sigma * source.gauss(0.0, 1.0))


def simulate_facts(job: Job) -> dict[str, Any]:
    """Scores that are best at alpha 0.3, with noise of their own."""
    if job.stage != "evaluate":
        return {}
    task = str(job.payload["spec"]["task"])  # type: ignore[call-overload, index]
    recipe = job.payload.get("recipe") or {"alpha": 0.0}
    alpha = float(recipe["alpha"])  # type: ignore[call-overload, index, arg-type]
    value = 80 - 60 * (alpha - 0.3) ** 2 + random.Random(job.fingerprint).gauss(0, 1)
    metric, value = ("pr.per", 100 - value) if task == "pr" else (f"{task}.accuracy", value)
    return {
        "scores": [
            {"metric": metric, "split": split, "values": [value]} for split in ("dev", "test")
        ]
    }


def search(
    workers: int, trials: int, window: int, sigma: float, share: float, sampler: str
) -> tuple[SimulatedCluster, list[list[float]], float]:
    """Runs a search; returns the cluster, the times of each trial's evaluations and real driver
    seconds."""
    plan = plan_of(spec_of(trials, window, share, sampler))
    store: Any = MemoryStore()
    cluster = SimulatedCluster(
        store, workers, lambda job: evaluation_seconds(job, sigma), simulate_facts
    )
    scheduler = JobScheduler(
        cluster, Silent(), lambda outcome: None, threading.Event(), by_priority=True
    )
    began = time.perf_counter()
    finished = run_search(
        plan, store, scheduler, OptunaProposer(plan.search, plan.space.draw), Silent()
    )
    real = time.perf_counter() - began
    times = []
    for trial in finished:
        keys = [plan.evaluation(trial.proposal, trial.number, task) for task in plan.tasks]
        times.append([evaluation_seconds(plan.jobs[key], sigma) for key in keys])
    return cluster, times, real


def generation_wise(times: list[list[float]], workers: int, size: int) -> tuple[float, float]:
    """Returns idle share and makespan when generations of ``size`` trials wait for their
    slowest."""
    total = 0.0
    for start in range(0, len(times), size):
        free = [0.0] * workers
        for trial in times[start : start + size]:
            heapq.heappush(free, heapq.heappop(free) + sum(trial))
        total += max(free)
    return 1 - sum(map(sum, times)) / (workers * total), total


def draw_times(trials: int, sigma: float, seed: int) -> list[list[float]]:
    """Draws the seconds of each evaluation of each trial."""
    source = random.Random(seed)
    medians = TASKS.values()
    return [
        [median * math.exp(sigma * source.gauss(0, 1)) for median in medians] for _ in range(trials)
    ]


def simulate_rule(
    times: list[list[float]], workers: int, window: int | None, share: float
) -> float:
    """Returns the idle share when trial k starts once all up to k - ``window`` have ended, and an
    evenly spread ``share`` of the trials is evaluated ahead by idle workers. ``window`` ``None``:
    a trial starts whenever a worker is free."""
    count, started, ended, ahead = len(times), 0, 0, 0
    left = [len(of_trial) for of_trial in times]
    queue: list[tuple[bool, int, int]] = []  # (speculative, trial, task)
    taken: set[tuple[int, int]] = set()
    running: list[tuple[float, int]] = []
    now = 0.0

    def add(trial: int, speculative: bool) -> None:
        for task in range(len(times[trial])):
            heapq.heappush(queue, (speculative, trial, task))

    while ended < count:
        while started < count and (
            len(queue) < workers if window is None else ended >= started + 1 - window
        ):
            add(started, False)
            started += 1
        limit = min(count, started + AHEAD_WINDOWS * (window or 0))
        for trial in range(max(ahead, started), limit):
            if math.floor((trial + 1) * share) > math.floor(trial * share):
                add(trial, True)
        ahead = max(ahead, limit)
        while queue and len(running) < workers:
            _, trial, task = heapq.heappop(queue)
            if (trial, task) not in taken:
                taken.add((trial, task))
                heapq.heappush(running, (now + times[trial][task], trial))
        now, trial = heapq.heappop(running)
        left[trial] -= 1
        while ended < started and not left[ended]:
            ended += 1
    return 1 - sum(map(sum, times)) / (workers * now)


def print_draws(arguments: argparse.Namespace) -> None:
    """Prints the idle share by window and random share, over draws of the times."""
    rules = [(None, 0.0), *itertools.product(arguments.window, arguments.random_share)]
    for sigma, (window, share) in itertools.product(arguments.sigma, rules):
        idle = [
            simulate_rule(
                draw_times(arguments.trials, sigma, seed), arguments.workers, window, share
            )
            for seed in range(arguments.draws)
        ]
        name = f"window {window}, random {share:.0%}" if window else "any trial at any time"
        print(
            f"sigma {sigma}, {name}: idle {statistics.fmean(idle):.1%}, "
            f"from {min(idle):.1%} to {max(idle):.1%} in {arguments.draws} draws",
            flush=True,
        )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=32)
    parser.add_argument("--trials", type=int, default=2400)
    parser.add_argument("--window", type=int, nargs="*", default=[128, 192, 256])
    parser.add_argument("--random-share", type=float, nargs="*", default=[0.0, 0.2])
    parser.add_argument("--sigma", type=float, nargs="*", default=SIGMAS)
    parser.add_argument(
        "--sampler", default="tpe", help="`random` asks fast; how long evaluations take is the same"
    )
    parser.add_argument("--draws", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.draws:
        print_draws(arguments)
        return
    print(
        f"{arguments.workers} workers, {arguments.trials} trials of {len(TASKS)} evaluations; "
        "idle until the last one ends"
    )
    for sigma in arguments.sigma:
        print(f"log-normal times, sigma {sigma}:")
        for window, share in itertools.product(arguments.window, arguments.random_share):
            cluster, times, real = search(
                arguments.workers, arguments.trials, window, sigma, share, arguments.sampler
            )
            per_trial = 1000 * real / arguments.trials
            print(
                f"  search, window {window:4}, random {share:4.0%}:  "
                f"idle {cluster.idle(True):6.2%}, {cluster.now / 3600:6.2f} simulated hours; "
                f"{cluster.idle(False):.2%} until work ran out "
                f"(driver: {per_trial:.0f} ms per trial, asking and bookkeeping)",
                flush=True,
            )
        for size in (1, 2, 4):
            idle, makespan = generation_wise(times, arguments.workers, size * arguments.workers)
            print(
                f"  generations of {size * arguments.workers:4}: idle {idle:6.2%}, "
                f"{makespan / 3600:6.2f} simulated hours"
            )


if __name__ == "__main__":
    main()
