"""Ray metrics of a sweep, on each node's metrics port as ``ray_speechft_...`` (Prometheus);
docs/monitoring.md lists them, and launch/monitoring/ has a board of them.

Tags are few and short (sweep, stage, state, task, metric, split), never alpha or a path: the
metrics port is open without a token, and every new tag value is a new time series.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Counter, Gauge

from speechft_ray.core.records import Job, Outcome, read_scores
from speechft_ray.sweep.protocols import Progress
from speechft_ray.sweep.status_file import SweepStatus


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
        self._encoded = Counter(
            "speechft_encoded_audio_hours",
            "Hours of audio that went through an encoder in evaluations that ended.",
            ("task",),
        )
        self._jobs = Gauge(
            "speechft_jobs",
            "Jobs of the sweep, by state to_do, running, done, failed or stopped.",
            ("sweep", "stage", "state"),
        )
        self._percent = Gauge("speechft_percent_done", "Jobs that are done, in %.", ("sweep",))
        self._seconds_left = Gauge("speechft_seconds_left", "Estimated time left.", ("sweep",))
        self._best = Gauge(
            "speechft_best_score",
            "Score of the merge that is best on dev so far.",
            ("sweep", "split"),
        )
        self._busy = Gauge(
            "speechft_busy_share",
            "Share of the cluster's CPU or GPU that jobs hold; 0 where there is none.",
            ("resource",),
        )
        self._counts: dict[tuple[str, str], int] = {}
        self._done: dict[str, float] = {}
        self._scores: dict[tuple[str, str], float] = {}

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
            self._scores[score.metric, score.split] = score.mean
            self._score.set(score.mean, {"metric": score.metric, "split": score.split})
        encoded = outcome.facts.get("encoded_seconds")
        if isinstance(encoded, int | float) and encoded > 0:
            self._encoded.inc(encoded / 3600, {"task": tags["task"]})

    def set_status(self, status: SweepStatus) -> None:
        """Sets what is known of the whole sweep, without an unknown time left. Call it every
        few seconds: Ray drops a gauge that was not set since the last export (2.60)."""
        for (stage, task), count in self._counts.items():
            self._in_flight.set(count, {"stage": stage, "task": task})
        for (metric, split), score in self._scores.items():
            self._score.set(score, {"metric": metric, "split": split})
        sweep = {"sweep": status.sweep}
        for stage, counts in status.jobs.items():
            for state, count in counts.items():
                self._jobs.set(count, {**sweep, "stage": stage, "state": state})
        self._percent.set(status.percent, sweep)
        if status.seconds_left is not None:
            self._seconds_left.set(status.seconds_left, sweep)
        if status.best is not None:
            self._best.set(status.best.dev_score, {**sweep, "split": "dev"})
            if status.best.test_score is not None:
                self._best.set(status.best.test_score, {**sweep, "split": "test"})

    def set_busy(self, total: Mapping[str, float], free: Mapping[str, float]) -> None:
        """Sets the share of the cluster that is in use, from amounts by Ray's resource names."""
        for name in ("CPU", "GPU"):
            amount = total.get(name, 0.0)
            share = 1.0 - free.get(name, 0.0) / amount if amount else 0.0
            self._busy.set(share, {"resource": name})

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
