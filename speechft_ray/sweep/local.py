"""Runs jobs in this process, one at a time: for debugging, small runs and tests."""

from __future__ import annotations

import socket
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from speechft_ray.core.curves import NOT_IN_CURVE, Point, read_point
from speechft_ray.core.errors import GpuMemoryError, Interrupted, StorageDown, UserError
from speechft_ray.core.full_disk import is_disk_full
from speechft_ray.core.preemption import Preempted, ask_with
from speechft_ray.core.records import Job, Outcome, Place
from speechft_ray.sweep.protocols import Perform, Progress, ReportProgress

SHOW_EVERY_SECONDS = 0.5
"""Shortest time between two looks at the progress of the running job."""

SAVE_SECONDS = 5.0
"""How long a job that must stop may take to save its state; then its next report ends it. Whoever
sent the signal kills after some 30 s."""


def perform_safely(perform: Perform, job: Job, place: Place, report: ReportProgress) -> Outcome:
    """Performs a job and returns its outcome; a failed job does not end a sweep.

    The error of the outcome is the sentence of a ``UserError``; of any other exception it is one
    line, beside the traceback. A storage that is full or away is marked as such. ``Interrupted``,
    ``KeyboardInterrupt`` and ``SystemExit`` are raised: they end the run, not the job.
    """
    start = time.monotonic()

    def make_outcome(**result: object) -> Outcome:
        identity = {"stage": job.stage, "fingerprint": job.fingerprint, "label": job.label}
        return Outcome.model_validate({**identity, **result, "seconds": time.monotonic() - start})

    try:
        # Facts that are not JSON raise here, so that they fail the job.
        return make_outcome(facts=dict(perform(job, place, report)))
    except Interrupted:
        raise
    except Preempted:
        return make_outcome(error="its node is about to be taken away", leaves_node=True)
    except Exception as error:
        if isinstance(error, StorageDown):
            return make_storage_down_outcome(job, error, time.monotonic() - start)
        if is_disk_full(error):
            return make_outcome(error=_describe_full_disk(place, error), cannot_store="disk full")
        if isinstance(error, UserError):
            is_estimate = place.gpu_share < 1 and job.resources.gpu_memory_bytes > 0
            lacks_gpu_share = isinstance(error, GpuMemoryError) and is_estimate
            return make_outcome(error=_one_line(str(error)), lacks_gpu_share=lacks_gpu_share)
        return make_outcome(
            error=_one_line(f"{type(error).__name__}: {error}"), traceback=traceback.format_exc()
        )


def make_storage_down_outcome(job: Job, error: StorageDown, seconds: float = 0.0) -> Outcome:
    """Returns the outcome of a job whose node gets no answer from the object store."""
    return Outcome(
        stage=job.stage,
        fingerprint=job.fingerprint,
        label=job.label,
        error=_one_line(f"on node {socket.gethostname()}: {error}"),
        cannot_store="storage down",
        seconds=seconds,
    )


def read_progress(latest: Mapping[str, float], points: Sequence[Point] = ()) -> Progress:
    """Returns the last values that a job reported, and new points of its curve."""
    values = {name: float(value) for name, value in latest.items() if name not in NOT_IN_CURVE}
    done, total = float(latest.get("done", 0.0)), float(latest.get("total", 0.0))
    return Progress(done, total, values, points)


class StopRequest:
    """Whether the running job must save its state and stop."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._asked_at: float | None = None

    def must_save(self) -> bool:
        """Whether the run was stopped. What saves its state asks this (``core.preemption``)."""
        if self._asked_at is None and self._stop.is_set():
            self._asked_at = time.monotonic()
        return self._asked_at is not None

    def check(self) -> None:
        """Raises ``Interrupted`` where the run was stopped and the job, which has had
        ``SAVE_SECONDS`` to save its state, goes on."""
        if self.must_save() and time.monotonic() - (self._asked_at or 0.0) >= SAVE_SECONDS:
            raise Interrupted


class LocalExecutor:
    """Performs each job inside ``outcomes``, in the calling thread and the order of submission.

    ``show`` gets the progress while a job runs, in the same thread. Once ``stop`` is set, the job
    that runs saves its state and ends, at its next report at the latest.
    """

    def __init__(
        self,
        perform: Perform,
        place: Place,
        show: Callable[[Mapping[str, Progress]], None] = lambda progress: None,
        stop: threading.Event | None = None,
    ) -> None:
        self._perform = perform
        self._stop = stop or threading.Event()
        self._place = place
        self._show = show
        self._waiting: deque[Job] = deque()
        self._running: dict[str, Progress] = {}
        self._stopped = False

    def submit(self, job: Job) -> None:
        """Queues a job. Raises ``RuntimeError`` after ``stop``."""
        if self._stopped:
            raise RuntimeError(f"`{job.label}` was submitted after the executor was stopped")
        self._waiting.append(job)

    def outcomes(self, timeout_seconds: float) -> list[Outcome]:
        """Performs the next job to its end, however long that takes; returns nothing at once when
        none is queued. Raises ``Interrupted`` when the run was stopped meanwhile."""
        if not self._waiting:
            return []
        job = self._waiting.popleft()
        latest: dict[str, float] = {}
        points: list[Point] = []
        shown_at = float("-inf")
        request = StopRequest(self._stop)

        def report(values: Mapping[str, float]) -> None:
            nonlocal shown_at
            latest.update(values)
            point = read_point(values)
            points.extend([point] if point else [])
            self._running = {job.fingerprint: read_progress(latest)}
            if time.monotonic() - shown_at >= SHOW_EVERY_SECONDS:
                self._show({job.fingerprint: read_progress(latest, tuple(points))})
                points.clear()
                shown_at = time.monotonic()
            request.check()

        report({})
        try:
            with ask_with(request.must_save):
                outcome = perform_safely(self._perform, job, self._place, report)
        finally:
            self._running = {}
        if outcome.leaves_node:
            raise Interrupted
        return [outcome]

    def slots(self, job: Job) -> int:
        """Returns 1."""
        return 1

    def progress(self) -> Mapping[str, Progress]:
        """Returns the progress of the running job; called from inside it or another thread."""
        return self._running

    def stop(self) -> None:
        """Removes the jobs that wait. May be called twice."""
        self._stopped = True
        self._waiting.clear()


def _describe_full_disk(place: Place, error: Exception) -> str:
    return _one_line(
        f"no space is left on node {socket.gethostname()} for {place.storage} or the caches of a "
        f"job ({type(error).__name__}: {error})"
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())
