"""Nodes that cannot use the storage of a run and get no jobs, for a while."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

FORGET_SECONDS = 300.0
"""How long a node gets no job after it refused one. Then it may have been repaired; where it was
not, the next job costs it the start of a worker."""


class UnfitNodes:
    """Ray's ids of the nodes that refused a job within ``FORGET_SECONDS``, and why."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock`` returns seconds from any fixed moment."""
        self._clock = clock
        self._reasons: dict[str, str] = {}
        """Of every node that ever refused one."""
        self._refused_at: dict[str, float] = {}

    def add(self, node: str, reason: str) -> bool:
        """Notes that a node refused a job; returns whether it is news, by node and reason."""
        is_new = self._reasons.get(node) != reason
        self._reasons[node] = reason
        self._refused_at[node] = self._clock()
        return is_new

    def list(self) -> set[str]:
        """Returns the nodes that get no job now."""
        now = self._clock()
        return {node for node, at in self._refused_at.items() if now - at < FORGET_SECONDS}

    def explain(self, nodes: Collection[str]) -> str | None:
        """Returns why no job can run on any of these nodes; ``None`` where one is fit, and where
        there is none, since one may come."""
        if not nodes or set(nodes) - self.list():
            return None
        reason = self._reasons[min(nodes)]
        return f"no node that has what this job asks for can use the driver's storage; {reason}"
