"""Runs a tracker in a thread of its own, so that a sweep never waits for it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from speechft_ray.sweep.protocols import Curve, EncoderRow, SweepInfo, Tracker, TrackerDown

FINISH_SECONDS = 120.0
"""How long ``finish`` waits for the next of the calls before it to end. However many there are, it
waits as long as they go on: a thousand rows take MLflow on sqlite about a minute, and several on a
busy machine."""

STOP_SECONDS = 10.0
"""How long ``finish`` waits in all when the sweep was stopped: Slurm and Kubernetes kill a process
30 s after they ask it to end. What is missing is sent by the next run."""


class BackgroundTracker:
    """Queues the calls to a tracker and returns at once; only ``finish`` and ``register_model``
    wait.

    When the tracker raises, the queued calls are dropped and the next call raises that error, once.
    The caller then repeats all calls later, as a ``Tracker`` allows; an error of a call that was
    queued before does not count any more.
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

    def start(self, sweep: SweepInfo) -> None:
        """Queues ``start``: the first call of a run, and the first after a ``TrackerDown``."""
        self._enqueue(lambda: self._tracker.start(sweep))

    def log_curve(self, curve: Curve) -> None:
        """Queues one learning curve."""
        self._enqueue(lambda: self._tracker.log_curve(curve))

    def log_encoder(self, row: EncoderRow) -> None:
        """Queues one merged encoder."""
        self._enqueue(lambda: self._tracker.log_encoder(row))

    def register_model(self, row: EncoderRow, folder: Path) -> None:
        """Registers the selected encoder and waits for that, as ``finish`` does."""
        self._enqueue(lambda: self._tracker.register_model(row, folder))
        self._wait()

    def finish(
        self, report: Path | None, score_by_alpha: Sequence[tuple[float, float]], status: str
    ) -> None:
        """Waits until all queued calls are made. Raises the error of a call, or ``TrackerDown``
        when none ends for ``finish_seconds``, and for a sweep that was stopped, after
        ``STOP_SECONDS`` in all."""
        points = list(score_by_alpha)
        self._enqueue(lambda: self._tracker.finish(report, points, status))
        self._wait(in_all=STOP_SECONDS if status == "stopped" else float("inf"))

    def how_to_open(self) -> str:
        """Returns the sentence of the tracker itself."""
        return self._tracker.how_to_open()

    def _wait(self, in_all: float = float("inf")) -> None:
        done = threading.Event()
        self._calls.put(done.set)
        ended, ends = self._ended, time.monotonic() + in_all
        patience = min(self._finish_seconds, in_all)
        while not done.wait(max(0.0, min(patience, ends - time.monotonic()))):
            if self._ended > ended and time.monotonic() < ends:
                ended = self._ended
                continue
            raise TrackerDown(
                f"{self._tracker.how_to_open()} It is still being written after {patience:g} s."
            )
        self._raise_error()

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
        try:
            call()
        except Exception as error:  # also a bug of the tracker: raised in the caller's thread
            with self._lock:
                if raised == self._raised:
                    self._error = error

    def _raise_error(self) -> None:
        with self._lock:
            error, self._error = self._error, None
            self._raised += error is not None
        if error is not None:
            raise error
