"""Notices nodes that are about to be taken away, and tells the jobs on them.

A spot machine, an autoscaler or ``ray drain-node`` marks a node as draining some time before it
ends. Ray then starts nothing more on it, and leaves what runs there alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

from ray._private.worker import global_worker

LOOK_SECONDS = 2.0
"""Between two looks of the driver, and between two questions of a worker."""

TIMEOUT_SECONDS = 1.0
"""How long the head may take to answer."""


def list_draining_nodes() -> Iterable[str]:
    """Returns Ray's ids of the nodes that are draining; none where the head does not answer (ray
    2.60, ``_raylet.GcsClient``; Ray has no public call for it)."""
    try:
        nodes: Iterable[str] = global_worker.gcs_client.get_draining_nodes(timeout=TIMEOUT_SECONDS)
    except Exception:  # of several classes, by what is wrong
        return ()
    return nodes


class DrainWatch:
    """Finds nodes that have begun to drain."""

    def __init__(
        self,
        list_nodes: Callable[[], Iterable[str]] = list_draining_nodes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``clock`` returns seconds from any fixed moment."""
        self._list_nodes, self._clock = list_nodes, clock
        self._looked_at = float("-inf")
        self._seen: set[str] = set()

    def look(self) -> list[str]:
        """Returns the nodes that are new, at most every ``LOOK_SECONDS``."""
        if self._clock() - self._looked_at < LOOK_SECONDS:
            return []
        self._looked_at = self._clock()
        new = sorted(set(self._list_nodes()) - self._seen)
        self._seen.update(new)
        return new


class DrainQuestion:
    """Asks the progress actor, now and then and without waiting, whether the jobs of this node must
    leave it.

    A task that calls ``ray.get`` or ``ray.wait`` lends its CPU to the next task meanwhile, and
    works beside it afterwards; one that looks at a future does not.
    """

    def __init__(self, progress_actor: Any, node: str) -> None:
        self._actor, self._node = progress_actor, node
        self._asked_at = time.monotonic()
        self._answer: Future[bool] | None = None
        self._leaves = False

    def __call__(self) -> bool:
        if self._leaves:
            return True
        now = time.monotonic()
        if self._answer is None and now - self._asked_at >= LOOK_SECONDS:
            self._answer = self._actor.must_leave.remote(self._node).future()
            self._asked_at = now
        if self._answer is not None and self._answer.done():
            answer, self._answer = self._answer, None
            # An error: the actor is restarting.
            self._leaves = answer.exception() is None and bool(answer.result())
        return self._leaves
