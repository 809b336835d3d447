"""Progress of running jobs: workers write it to one small actor, the driver reads it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from speechft_ray.core.records import Job, Outcome, Place
from speechft_ray.sweep.local import perform_safely, read_progress
from speechft_ray.sweep.protocols import Perform, Progress, ReportProgress

REPORT_EVERY_SECONDS = 0.5
"""A worker sends at most this often: a thousand workers then cost the actor two thousand small
calls a second."""


def start_progress_actor() -> Any:
    """Starts the actor that holds the progress of all jobs, on the driver's own node, so that it
    outlives every worker node."""
    here = NodeAffinitySchedulingStrategy(
        node_id=ray.get_runtime_context().get_node_id(), soft=True
    )
    name = f"speechft-progress-{uuid.uuid4().hex[:8]}"
    return (
        ray.remote(ProgressActor)
        .options(name=name, num_cpus=0, max_restarts=-1, scheduling_strategy=here)
        .remote()
    )


def perform_on_worker(
    perform: Perform,
    job: Job,
    place: Place,
    progress_actor: Any,
    curve: ReportProgress | None = None,
) -> Outcome:
    """Runs one job on its worker. Reports go to the actor and to ``curve``.

    A job that asked for no GPU stays on the CPU even where it can see one: that GPU belongs to
    another job.
    """
    if not ray.get_gpu_ids():
        place = place.model_copy(update={"device": "cpu"})
    send = throttle(
        lambda latest: progress_actor.put.remote(job.fingerprint, latest), REPORT_EVERY_SECONDS
    )

    def report(values: Mapping[str, float]) -> None:
        send(values)
        if curve is not None:
            curve(values)

    send({})  # shows the job as running before its first report
    return perform_safely(perform, job, place, report)


def throttle(send: Callable[[dict[str, float]], object], every_seconds: float) -> ReportProgress:
    """Returns a report that sends the latest value of each name at most every so many seconds.

    It does not wait for an answer.
    """
    latest: dict[str, float] = {}
    sent_at = float("-inf")

    def report(values: Mapping[str, float]) -> None:
        nonlocal sent_at
        latest.update({name: float(value) for name, value in values.items()})
        if time.monotonic() - sent_at >= every_seconds:
            sent_at = time.monotonic()
            send(dict(latest))

    return report


def read_progress_actor(progress_actor: Any, timeout_seconds: float) -> dict[str, Progress] | None:
    """Returns the progress by fingerprint, or ``None`` when the actor does not answer in time (it
    may be restarting)."""
    try:
        reports: dict[str, dict[str, float]] = ray.get(
            progress_actor.read.remote(), timeout=timeout_seconds
        )
    except (ray.exceptions.GetTimeoutError, ray.exceptions.RayActorError):
        return None
    return {fingerprint: read_progress(latest) for fingerprint, latest in reports.items()}


class ProgressActor:
    """The latest report of every running job, by fingerprint."""

    def __init__(self) -> None:
        self._latest: dict[str, dict[str, float]] = {}

    def put(self, fingerprint: str, latest: dict[str, float]) -> None:
        self._latest[fingerprint] = latest

    def remove(self, fingerprint: str) -> None:
        self._latest.pop(fingerprint, None)

    def read(self) -> dict[str, dict[str, float]]:
        return self._latest
