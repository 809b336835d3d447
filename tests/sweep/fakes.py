"""A sweep in milliseconds: a spec, its inputs and an executor that publishes made-up scores."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from speechft_ray.core.records import STAGES, Job, Outcome
from speechft_ray.core.space import parse_space
from speechft_ray.core.specs import CorpusSpec, SweepSpec
from speechft_ray.core.store import Store
from speechft_ray.sweep.inputs import Inputs
from speechft_ray.sweep.plan import Plan
from speechft_ray.sweep.protocols import Executor, Progress
from speechft_ray.sweep.scheduler import JobScheduler, Observer, run_jobs


def space(**changes: Any) -> dict[str, Any]:
    """Plain data of a small valid search space."""
    corpus = {"name": "synthetic", "options": {"part": "phones"}}
    objective = {"head": "frame", "corpus": corpus, "column": "phones"}
    raw: dict[str, Any] = {
        "name": "small",
        "finetune": [
            {"name": "narrow", "objectives": [objective], "updates": 10, "seed": {"grid": [0, 1]}}
        ],
        "merge": [{"alpha": {"grid": [0, 0.25, 0.5]}}],
        "evaluate": [
            {"task": "pr", "corpus": {"options": {"part": "pr"}}, "updates": 5, "seeds": 2},
            {"task": "sid", "corpus": {"options": {"part": "sid"}}, "updates": 5, "seeds": 2},
        ],
        "score": {"zero": "measured", "topline": {"pr.per": 0, "sid.accuracy": 100}},
    }
    return {**raw, **changes}


def sweep(**changes: Any) -> SweepSpec:
    return parse_space(space(**changes), where="test")


def inputs() -> Inputs:
    def corpus(spec: CorpusSpec) -> tuple[str, bool]:
        return f"corpus-{spec.options.get('part', 'x')}", spec.name == "synthetic"

    return Inputs(encoder="encoder-0", corpus=corpus)


class FakeExecutor:
    """Publishes made-up facts at once, in order or last first; jobs with ``fail`` in their label
    fail."""

    def __init__(
        self,
        store: Store,
        fail: str | None = None,
        last_first: bool = False,
        facts: Callable[[Job], dict[str, Any]] | None = None,
    ) -> None:
        self.store, self.fail, self.last_first = store, fail, last_first
        self.facts = facts or fake_facts
        self.queue: list[Job] = []
        self.done: list[str] = []
        self.stopped = False

    def submit(self, job: Job) -> None:
        for need in job.needs:
            assert any(self.store.is_complete(stage, need) for stage in STAGES), (
                f"{job.label} came too early"
            )
        self.queue.append(job)

    def outcomes(self, timeout_seconds: float) -> list[Outcome]:
        job = self.queue.pop(-1 if self.last_first else 0)
        if self.fail and self.fail in job.label:
            return [
                Outcome(
                    stage=job.stage,
                    fingerprint=job.fingerprint,
                    label=job.label,
                    error="made to fail",
                )
            ]
        facts = self.facts(job)
        with self.store.publish(job.stage, job.fingerprint, facts) as folder:
            (folder / "content.txt").write_text(job.label)
        self.done.append(job.label)
        return [Outcome(stage=job.stage, fingerprint=job.fingerprint, label=job.label, facts=facts)]

    def slots(self, job: Job) -> int:
        return 2

    def progress(self) -> Mapping[str, Progress]:
        return {job.fingerprint: Progress(1, 2, {}) for job in self.queue[:1]}

    def stop(self) -> None:
        self.stopped = True


def run_plan(
    plan: Plan,
    store: Store,
    executor: Executor,
    observer: Observer,
    on_outcome: Callable[[Outcome], None],
    stop: threading.Event,
) -> list[Outcome]:
    """Performs what the store lacks of a plan; returns failed jobs and those that they blocked."""
    scheduler = JobScheduler(executor, observer, on_outcome, stop)
    run_jobs(plan, store, scheduler)
    return [outcome for outcome in scheduler.failed.values() if not outcome.stopped]


class FakeObserver:
    """Records the events of a run."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def on_job_start(self, job: Job) -> None:
        self.events.append(f"started {job.label}")

    def on_job_end(self, outcome: Outcome) -> None:
        self.events.append(f"{'finished' if outcome.ok else 'failed'} {outcome.label}")

    def on_progress(self, progress: Mapping[str, Progress]) -> None:
        assert all(item.done <= item.total for item in progress.values())


def fake_facts(job: Job) -> dict[str, Any]:
    """Returns scores that depend only on the fingerprint of the job, as real ones do."""
    if job.stage != "evaluate":
        return (
            {"curve": [[1, {"loss": 2.0}], [2, {"loss": 1.0}]]} if job.stage == "finetune" else {}
        )
    task = str(job.payload["spec"]["task"])  # type: ignore[call-overload, index]
    metric = {"pr": "pr.per", "sid": "sid.accuracy"}[task]
    value = int(job.fingerprint[:4], 16) / 65536 * 50 + 25
    return {
        "scores": [
            {"metric": metric, "split": split, "values": [value + shift, value + shift + 1]}
            for split, shift in (("dev", 0.0), ("test", 0.5))
        ]
    }


def store_at(path: Path) -> Store:
    """Returns a store in a folder of a test."""
    return Store(path / "store")
