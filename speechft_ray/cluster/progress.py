"""Progress of running jobs: workers write it to one small actor, the driver reads it."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import TimeoutError as NoAnswer
from contextlib import suppress
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from speechft_ray.cluster.draining import DrainQuestion
from speechft_ray.core.curves import Point, read_point
from speechft_ray.core.errors import StorageDown
from speechft_ray.core.preemption import ask_with
from speechft_ray.core.processes import find_start, kill_process
from speechft_ray.core.records import Job, Outcome, Place
from speechft_ray.storage.open import explain_other_storage
from speechft_ray.sweep.local import (
    make_storage_down_outcome,
    perform_safely,
    read_progress,
)
from speechft_ray.sweep.protocols import Perform, Progress, ReportProgress

REPORT_EVERY_SECONDS = 0.5
"""A worker sends at most this often: a thousand workers then cost the actor two thousand small
calls a second."""

ANSWER_SECONDS = 5.0
"""How long the actor may take to say where a job runs."""


def start_progress_actor() -> Any:
    """Starts the actor that holds the progress of all jobs, on the driver's own node, so that it
    outlives every worker node."""
    here = NodeAffinitySchedulingStrategy(
        node_id=ray.get_runtime_context().get_node_id(), soft=True
    )
    name = f"speechft-progress-{uuid.uuid4().hex[:8]}"
    return (
        ray.remote(ProgressActor)
        .options(
            name=name,
            num_cpus=0,
            max_restarts=-1,
            scheduling_strategy=here,
            enable_task_events=False,  # else its calls are most of what the dashboard shows
        )
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

    A node that sees another storage folder than the driver refuses its job: ``unfit_node``. Where
    an object store does not answer, no node can store anything. A job that asked for no GPU stays
    on the CPU even where it can see one: that GPU belongs to another job; one that asked for a
    share of a GPU has at most this share of its memory.
    """
    try:
        problem = explain_other_storage(place)
    except StorageDown as error:
        return make_storage_down_outcome(job, error)
    if problem is not None:
        return Outcome(
            stage=job.stage,
            fingerprint=job.fingerprint,
            label=job.label,
            error=problem,
            unfit_node=ray.get_runtime_context().get_node_id(),
        )
    if not ray.get_gpu_ids():
        place = place.model_copy(update={"device": "cpu"})
    elif share := ray.get_runtime_context().get_assigned_resources().get("GPU"):
        place = place.model_copy(update={"gpu_share": share})
    send = throttle(
        lambda latest, points: progress_actor.put.remote(job.fingerprint, latest, points),
        REPORT_EVERY_SECONDS,
    )

    def report(values: Mapping[str, float]) -> None:
        send(values)
        if curve is not None:
            curve(values)

    # Waited for, so that a job is known to run, and where, before it can hang.
    with suppress(ray.exceptions.RayError, NoAnswer):
        begin = progress_actor.add_worker.remote(job.fingerprint, Worker.describe())
        begin.future().result(timeout=ANSWER_SECONDS)  # ``ray.get`` would lend the task's CPU
    with ask_with(DrainQuestion(progress_actor, ray.get_runtime_context().get_node_id())):
        return perform_safely(perform, job, place, report)


class Worker(NamedTuple):
    """The process that performs a job."""

    node: str
    """Ray's id of its node."""
    host: str
    process: int
    started: str | None
    """See ``find_start``."""

    @classmethod
    def describe(cls) -> Worker:
        """Returns this process."""
        process = os.getpid()
        node = ray.get_runtime_context().get_node_id()
        return cls(node, socket.gethostname(), process, find_start(process))

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"


def kill_worker_of(progress_actor: Any, fingerprint: str) -> str | None:
    """Kills the process that performs a job, from another one on its node: one that is stopped or
    hangs does not end itself when Ray asks. Returns the process as text; ``None`` where it is not
    known. Does not wait for its end."""
    try:
        worker: Worker | None = ray.get(
            progress_actor.find_worker.remote(fingerprint), timeout=ANSWER_SECONDS
        )
        if worker is None:
            return None
        here = NodeAffinitySchedulingStrategy(node_id=worker.node, soft=False)
        kill = ray.remote(max_retries=0)(kill_process)
        kill.options(num_cpus=0, name=f"kill {worker}", scheduling_strategy=here).remote(
            worker.process, worker.started
        )
    except ray.exceptions.RayError:
        return None
    return str(worker)


def throttle(
    send: Callable[[dict[str, float], list[Point]], object], every_seconds: float
) -> ReportProgress:
    """Returns a report that sends the latest value of each name, and all points of the curve since
    the last time, at most every so many seconds.

    It does not wait for an answer.
    """
    latest: dict[str, float] = {}
    points: list[Point] = []
    sent_at = float("-inf")

    def report(values: Mapping[str, float]) -> None:
        nonlocal sent_at, points
        latest.update({name: float(value) for name, value in values.items()})
        point = read_point(values)
        points.extend([point] if point else [])
        if time.monotonic() - sent_at >= every_seconds:
            sent_at = time.monotonic()
            send(dict(latest), points)
            points = []

    return report


class ProgressReader:
    """Reads the progress actor. An answer that comes late is not lost: it is the next one."""

    def __init__(self, progress_actor: Any, timeout_seconds: float) -> None:
        self._actor, self._timeout = progress_actor, timeout_seconds
        self._answer: Any = None

    def read(self) -> dict[str, Progress] | None:
        """Returns the progress by fingerprint, or ``None`` when the actor does not answer in time
        (it may be restarting)."""
        self._answer = self._answer or self._actor.read.remote()
        try:
            reports: dict[str, Report] = ray.get(self._answer, timeout=self._timeout)
        except ray.exceptions.GetTimeoutError:
            return None
        except ray.exceptions.RayError:  # also OutOfMemoryError: it is killed like any other actor
            self._answer = None
            return None
        self._answer = None
        return {key: read_progress(latest, points) for key, (latest, points) in reports.items()}


Report = tuple[dict[str, float], list[Point]]
"""The latest values of a job, and new points of its curve."""


class ProgressActor:
    """The latest report of every running job, by fingerprint, and points of curves until they are
    read."""

    def __init__(self) -> None:
        self._latest: dict[str, dict[str, float]] = {}
        self._points: dict[str, list[Point]] = {}
        self._workers: dict[str, Worker] = {}
        self._draining: set[str] = set()

    def add_draining(self, node: str) -> None:
        self._draining.add(node)

    def must_leave(self, node: str) -> bool:
        return node in self._draining

    def add_worker(self, fingerprint: str, worker: Worker) -> None:
        self._workers[fingerprint] = worker
        self._latest[fingerprint] = {}

    def find_worker(self, fingerprint: str) -> Worker | None:
        return self._workers.get(fingerprint)

    def put(self, fingerprint: str, latest: dict[str, float], points: list[Point]) -> None:
        self._latest[fingerprint] = latest
        self._points.setdefault(fingerprint, []).extend(points)

    def remove(self, fingerprint: str) -> None:
        self._latest.pop(fingerprint, None)
        self._points.pop(fingerprint, None)
        self._workers.pop(fingerprint, None)

    def read(self) -> dict[str, Report]:
        points, self._points = self._points, {}
        return {key: (latest, points.get(key, [])) for key, latest in self._latest.items()}
