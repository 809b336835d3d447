"""Whether a job must leave its node, which is about to be taken away.

Where a job saves its state, it looks here, saves at once when it must leave, and ends with
``Preempted``; it then goes on elsewhere from that state. Each process performs one job.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Preempted(Exception):
    """A job saved its state and left its node. It has not failed."""


def _stays() -> bool:
    return False


_ask: Callable[[], bool] = _stays


@contextmanager
def ask_with(ask: Callable[[], bool]) -> Iterator[None]:
    """Asks a function inside, which is called often and must return at once."""
    global _ask
    before, _ask = _ask, ask
    try:
        yield
    finally:
        _ask = before


def must_leave() -> bool:
    """Whether the job must save its state and leave."""
    return _ask()


def leave_if_asked() -> None:
    """Raises ``Preempted`` where the job must leave. Call it after a state was saved."""
    if _ask():
        raise Preempted
