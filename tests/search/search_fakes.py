"""A search in milliseconds: a simulated cluster with its own clock, made-up scores, and what came
of it."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.search_idle import MemoryStore, Silent, SimulatedCluster
from speechft_ray.core.records import Job
from speechft_ray.core.space import parse_space
from speechft_ray.search.greedy_soup import GreedySoup
from speechft_ray.search.loop import run_search
from speechft_ray.search.optuna_proposer import OptunaProposer
from speechft_ray.search.plan import SearchPlan, make_search_plan
from speechft_ray.search.proposals import Proposer
from speechft_ray.search.trials import Trial, TrialEvaluator
from speechft_ray.sweep.scheduler import JobScheduler
from tests.sweep.fakes import inputs, space

AXES: dict[str, Any] = {
    "alpha": {"uniform": [0, 1]},
    "seed": "donors",
    "method": {"choice": ["linear", "ties"]},
    "ties": {"density": {"uniform": [0.05, 1]}},
}
CURVE: dict[str, Any] = {"layers": {"curve": [0, 1], "knots": 2}}
DEPTH = 6
Facts = Callable[[Job], Mapping[str, Any] | None]


def search_space(seeds: Sequence[int] = (0, 1), **changes: Any) -> dict[str, Any]:
    """Plain data of a small search; ``seeds`` of its fine-tuning run, ``changes`` of its ``search``
    section."""
    raw = space(search={"trials": 16, "max_concurrent": 5, "axes": AXES, **changes})
    raw["finetune"] = [{**raw["finetune"][0], "seed": {"grid": list(seeds)}}]
    return {name: value for name, value in raw.items() if name != "merge"}


def search_plan(**changes: Any) -> SearchPlan:
    return make_search_plan(parse_space(search_space(**changes), "test"), inputs(), DEPTH)


def proposer_of(plan: SearchPlan) -> Proposer:
    greedy = plan.search.sampler == "greedy_soup"
    return (
        GreedySoup(plan.search, plan.space)
        if greedy
        else OptunaProposer(plan.search, plan.space.draw)
    )


def job_task(job: Job) -> str:
    return str(job.payload["spec"]["task"])  # type: ignore[call-overload, index]


def alpha_of(job: Job) -> float:
    recipe: Any = job.payload.get("recipe") or {"alpha": 0.0}
    return float(recipe["alpha"])


def smooth(job: Job) -> dict[str, Any]:
    """Scores that are best at alpha 0.3 and depend on the job's own identity only, as real ones
    do."""
    if job.stage != "evaluate":
        return {}
    value = 80 - 60 * (alpha_of(job) - 0.3) ** 2 + random.Random(job.fingerprint).random()
    if job.payload.get("kind") == "screen":  # other values, in nearly the same order
        name = {"sid": "ridge", "pr": "abx"}[job_task(job)]
        return {
            "screen": {name: value / 2},
            "distance": alpha_of(job) / 10,
            "seconds": {"screen": 1.0},
        }
    name, value = {"pr": ("pr.per", 100 - value), "sid": ("sid.accuracy", value)}[job_task(job)]
    if job.payload["encoder"] is None:  # FBank
        value = 60.0 if name == "pr.per" else 40.0
    splits = job.payload.get("splits", ["dev", "test"])
    scores = [
        {"metric": name, "split": split, "values": [value]}
        for split in splits  # type: ignore[union-attr]
    ]
    return {"scores": scores, "distance": alpha_of(job) / 10, "seconds": {"probe": 2.0}}


def uneven(seed: int) -> Callable[[Job], float]:
    """Durations that differ a lot from job to job and from seed to seed, so that things end in
    another order."""
    return lambda job: random.Random(f"{seed} {job.fingerprint}").lognormvariate(0, 1.5)


def cluster(store: Any, workers: int = 3, seed: int = 0, facts: Facts = smooth) -> SimulatedCluster:
    return SimulatedCluster(store, workers, uneven(seed), facts)


def perform(
    plan: SearchPlan,
    executor: SimulatedCluster,
    observer: Any = None,
    stop: threading.Event | None = None,
) -> list[Trial]:
    """Runs a search on a simulated cluster whose store is the executor's."""
    scheduler = JobScheduler(
        executor, Silent(), lambda outcome: None, stop or threading.Event(), by_priority=True
    )
    return run_search(plan, executor.store, scheduler, proposer_of(plan), observer or Silent())


def summarize(trials: list[Trial]) -> list[Any]:
    """All that must be the same in two runs of one search."""
    return [
        (t.number, t.key, dict(t.proposal.values), t.state, t.metrics, t.result, t.repeats)
        for t in trials
    ]


def evaluator_of(plan: SearchPlan, store: Any) -> TrialEvaluator:
    from speechft_ray.search.loop import open_evaluator

    evaluator = open_evaluator(plan, store)
    assert evaluator is not None
    return evaluator


__all__ = [
    "MemoryStore",
    "cluster",
    "evaluator_of",
    "perform",
    "search_plan",
    "search_space",
    "smooth",
    "summarize",
]
