"""Counts how often jobs lost their worker or node, and tells such losses from other errors."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping

from ray.exceptions import (
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    WorkerCrashedError,
)

from speechft_ray.cluster.ray_errors import shorten
from speechft_ray.sweep.protocols import Progress

PROGRESS_SHARE = 0.01
"""An attempt is progress when it got so much further than all before, as a share of the job."""

_LOSSES = (
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    WorkerCrashedError,
)
_MEMORY = re.compile(r"Memory on the node \(IP: ([^,)]+).*?was ([0-9.]+GB) used / ([0-9.]+GB)")


def is_loss(error: BaseException) -> bool:
    """Whether a task ended because its worker or node did, not because of an error of its own."""
    return isinstance(error, _LOSSES)


def explain_memory(text: str) -> str | None:
    """Returns what Ray's text says of a worker that it killed when memory ran out, else ``None``.

    Ray's text has a hundred lines.
    """
    match = _MEMORY.search(text)
    if match is None:
        return None
    node, used, size = match.groups()
    return f"memory ran out on node {node} ({used} of {size} were used)"


def describe_losses(losses: int, error: object) -> str:
    """Returns the end of a sentence about a job that was lost too often, with the way out."""
    text = str(error)
    name = f" ({type(error).__name__})" if isinstance(error, BaseException) else ""
    times = "once" if losses == 1 else f"{losses} times"
    without = " without progress in between" if losses > 1 else ""
    cause = explain_memory(text)
    reason = f"{cause}." if cause else shorten(text)
    way_out = (
        "give fewer jobs to a node or a smaller batch to a job, or take a larger node"
        if cause
        else "if memory ran out, give fewer jobs to a node or more memory to a job"
    )
    return (
        f"{times}{without}{name}: {reason} To go on, {way_out}; running the same "
        "command again retries it, and it goes on from a saved state if it has one."
    )


class Losses:
    """How often each job was lost since it last got further than ever before.

    Safe to use from several threads.
    """

    def __init__(self, retries: int) -> None:
        """``retries``: see ``Limits``."""
        self.retries = retries
        self._counts: dict[str, int] = {}
        self._furthest: dict[str, float] = {}
        """The greatest progress of each job, ``done``."""
        self._marks: dict[str, float] = {}
        """``_furthest`` at the last loss."""
        self._memory: dict[str, int] = {}
        self._on_progress: dict[str, Callable[[], None]] = {}
        self._lock = threading.Lock()

    def see(self, running: Mapping[str, Progress]) -> None:
        """Notes the progress of jobs; one that got further than ever has all its retries."""
        with self._lock:
            for key, item in running.items():
                self._furthest[key] = max(self._furthest.get(key, 0.0), item.done)
                step = max(PROGRESS_SHARE * item.total, 1e-9)
                if key in self._counts and item.done >= self._marks[key] + step:
                    del self._counts[key]
                    self._on_progress.pop(key, lambda: None)()

    def call_on_progress(self, key: str, function: Callable[[], None]) -> None:
        """Calls ``function`` once, in the thread that sees it, when a job that was lost gets
        further than ever before."""
        with self._lock:
            self._on_progress[key] = function

    def count(self, key: str, out_of_memory: bool = False) -> int:
        """Counts a loss; returns how many there were without progress in between."""
        with self._lock:
            self._counts[key] = self._counts.get(key, 0) + 1
            self._marks[key] = self._furthest.get(key, 0.0)
            if out_of_memory:
                self._memory[key] = self._memory.get(key, 0) + 1
            return self._counts[key]

    def number(self, key: str) -> int:
        """Returns how many losses without progress in between there were."""
        with self._lock:
            return self._counts.get(key, 0)

    def out_of_memory(self, key: str) -> int:
        """Returns how often memory ran out under this job, in all its attempts."""
        with self._lock:
            return self._memory.get(key, 0)
