"""Runs a tracker in a thread of its own, so that a sweep never waits for it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping

from speechft_ray.sweep.protocols import (
    Curve,
    EncoderRow,
    Model,
    SweepEnd,
    SweepInfo,
    Tracker,
    TrackerDown,
)

FINISH_SECONDS = 120.0
"""How long ``finish`` waits for the next of the calls before it to end. However many there are, it
waits as long as they go on: a thousand rows take MLflow on sqlite about a minute, and several on a
busy machine."""

RETRY_SHARE = 0.01
"""How long ``finish`` waits for the next call where the last one had failed or hangs, as a share of
the time since the start, and at least ``LEAST_RETRY_SECONDS``: a server that hangs delays the end
of a sweep by hardly more."""

LEAST_RETRY_SECONDS = 1.0

HANG_SECONDS = 60.0
"""A call that has taken so long counts as one that hangs; creating a database takes ten seconds."""

STOP_SECONDS = 10.0
"""How long ``finish`` waits in all when the sweep was stopped: Slurm and Kubernetes kill a process
30 s after they ask it to end. What is missing is sent by the next run."""


class BackgroundTracker:
    """Queues the calls to a tracker and returns at once; only ``finish`` and ``register_model``
    wait.

    When the tracker raises, the queued calls are dropped and the next call raises that error, once.
    The caller then repeats all calls later, as a ``Tracker`` allows; an error of a call that was
    queued before does not count any more.

    New points of a run that wait in the queue are one call, however slow the tracker is.
    """

    def __init__(self, tracker: Tracker, finish_seconds: float = FINISH_SECONDS) -> None:
        self._tracker = tracker
        self._finish_seconds = finish_seconds
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._error: Exception | None = None
        self._raised = 0
        """How many errors were raised; a call that was queued before the last of them is void."""
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ended = 0
        """Calls that have ended."""
        self._last_failed = False
        self._waiting_points: dict[str, list[tuple[int, Mapping[str, float]]]] = {}
        """Points of running jobs that wait in the queue, by run."""
        self._started_at = time.monotonic()
        self._call_began: float | None = None
        """When the call began that is being made."""

    def start(self, sweep: SweepInfo) -> None:
        """Queues ``start``: the first call of a run, and the first after a ``TrackerDown``."""
        self._enqueue(lambda: self._tracker.start(sweep))

    def log_curve(self, curve: Curve) -> None:
        """Queues one learning curve, or adds its points to those that wait."""
        if curve.state != "running":
            self._enqueue(lambda: self._tracker.log_curve(curve))
            return
        self._raise_error()
        with self._lock:
            waiting = self._waiting_points.get(curve.key)
            if waiting is not None:
                waiting.extend(curve.points)
                return
            self._waiting_points[curve.key] = list(curve.points)
        self._enqueue(lambda: self._log_waiting_points(curve))

    def _log_waiting_points(self, curve: Curve) -> None:
        with self._lock:
            points = self._waiting_points.pop(curve.key, [])
        self._tracker.log_curve(curve._replace(points=points))

    def log_encoder(self, row: EncoderRow) -> None:
        """Queues one merged encoder."""
        self._enqueue(lambda: self._tracker.log_encoder(row))

    def register_model(self, row: EncoderRow, model: Model) -> None:
        """Registers the selected encoder and waits for that, as ``finish`` does."""
        self._enqueue(lambda: self._tracker.register_model(row, model))
        self._wait()

    def finish(self, end: SweepEnd) -> None:
        """Waits until all queued calls are made. Raises the error of a call, or ``TrackerDown``
        when none ends for ``finish_seconds``, and for a sweep that was stopped, after
        ``STOP_SECONDS`` in all."""
        self._enqueue(lambda: self._tracker.finish(end))
        self._wait(in_all=STOP_SECONDS if end.status == "stopped" else float("inf"))

    def how_to_open(self) -> str:
        """Returns the sentence of the tracker itself."""
        return self._tracker.how_to_open()

    def _wait(self, in_all: float = float("inf")) -> None:
        done = threading.Event()
        self._calls.put(done.set)
        ended, ends = self._ended, time.monotonic() + in_all
        patience = min(self._find_patience(), in_all)
        while not done.wait(max(0.0, min(patience, ends - time.monotonic()))):
            if self._ended > ended and time.monotonic() < ends:
                ended, patience = self._ended, min(self._find_patience(), in_all)
                continue
            raise TrackerDown(
                f"{self._tracker.how_to_open()} It is still being written after {patience:g} s."
            )
        self._raise_error()

    def _find_patience(self) -> float:
        """Returns how many seconds the next call may take."""
        now, began = time.monotonic(), self._call_began
        hangs = began is not None and now - began > HANG_SECONDS
        if not (self._last_failed or hangs):
            return self._finish_seconds
        share = RETRY_SHARE * (now - self._started_at)
        return min(self._finish_seconds, max(LEAST_RETRY_SECONDS, share))

    def _enqueue(self, call: Callable[[], None]) -> None:
        self._raise_error()
        raised = self._raised
        self._calls.put(lambda: self._attempt(call, raised))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="speechft-tracker", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            self._calls.get()()
            self._ended += 1

    def _attempt(self, call: Callable[[], None], raised: int) -> None:
        if self._error is not None or raised != self._raised:
            return  # dropped: the caller repeats it after the error was raised
        self._call_began = time.monotonic()
        try:
            call()
            self._last_failed = False
        except Exception as error:  # also a bug of the tracker: raised in the caller's thread
            self._last_failed = True
            with self._lock:
                if raised == self._raised:
                    self._error = error
        finally:
            self._call_began = None

    def _raise_error(self) -> None:
        with self._lock:
            error, self._error = self._error, None
            if error is not None:
                self._raised += 1
                self._waiting_points.clear()  # their calls are void
        if error is not None:
            raise error
