"""Ray metrics of a sweep, on each node's metrics port as ``ray_speechft_...`` (Prometheus).

Tags are few and short (stage, task, metric, result), never alpha or a path: the metrics port is
open without a token, and every new tag value is a new time series.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Counter, Gauge

from speechft_ray.core.records import Job, Outcome, read_scores
from speechft_ray.sweep.protocols import Progress


def task_of(payload: Mapping[str, Any]) -> str:
    """Returns the SUPERB task that a job's payload names, at its top or one level down; empty when
    it names none."""
    levels = [payload, *(value for value in payload.values() if isinstance(value, Mapping))]
    return next((str(level["task"]) for level in levels if isinstance(level.get("task"), str)), "")


class ClusterMetrics:
    """Metrics that the driver writes; workers write none."""

    def __init__(self) -> None:
        where = ("stage", "task")
        self._in_flight = Gauge("speechft_jobs_in_flight", "Jobs submitted and not ended.", where)
        self._ended = Counter(
            "speechft_jobs_ended", "Jobs ended, by result ok or failed.", (*where, "result")
        )
        self._seconds = Counter("speechft_job_seconds", "Seconds spent in ended jobs.", where)
        self._work = Counter(
            "speechft_work_done", "Updates or utterances done, as jobs report them.", where
        )
        self._score = Gauge(
            "speechft_last_score",
            "Mean of the last evaluation, in the metric's unit.",
            ("metric", "split"),
        )
        self._counts: dict[tuple[str, str], int] = {}
        self._done: dict[str, float] = {}

    def count_submitted(self, job: Job) -> None:
        """Counts a submitted job."""
        self._count(job, +1)

    def count_ended(self, job: Job, outcome: Outcome) -> None:
        """Counts an ended job and sets its scores."""
        tags = _tags(job)
        self._count(job, -1)
        self._done.pop(job.fingerprint, None)
        self._ended.inc(1.0, {**tags, "result": "ok" if outcome.ok else "failed"})
        if outcome.seconds > 0:
            self._seconds.inc(outcome.seconds, tags)
        for score in read_scores(outcome.facts):
            self._score.set(score.mean, {"metric": score.metric, "split": score.split})

    def add_progress(self, job: Job, progress: Progress) -> None:
        """Adds the work that a running job did since the last call; a job that began anew counts
        from its new start."""
        before = self._done.get(job.fingerprint, 0.0)
        self._done[job.fingerprint] = progress.done
        if progress.done > before:
            self._work.inc(progress.done - before, _tags(job))

    def _count(self, job: Job, change: int) -> None:
        tags = _tags(job)
        key = (tags["stage"], tags["task"])
        self._counts[key] = self._counts.get(key, 0) + change
        self._in_flight.set(self._counts[key], tags)


def _tags(job: Job) -> dict[str, str]:
    return {"stage": job.stage, "task": task_of(job.payload)}
