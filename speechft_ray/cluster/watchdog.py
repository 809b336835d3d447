"""Finds jobs that run and report no progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from speechft_ray.core.records import Job, Limits
from speechft_ray.sweep.protocols import Progress

REMARK_SHARE = 0.5
"""A remark is made at this share of the limit."""


class Stall(NamedTuple):
    """A job without progress."""

    job: Job
    minutes: float
    """Since its last progress."""
    is_over: bool
    """Whether that is its limit; else half of it."""


class Watchdog:
    """Compares each look at the progress of running jobs with the one before.

    A stopped process, a file system that hangs or a lost wake-up raise nothing, and Ray waits.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock`` returns seconds from any fixed moment."""
        self._limits = limits.stall_minutes
        self._clock = clock
        self._changed: dict[str, tuple[Progress, float, bool]] = {}
        """Progress of a job when it last changed, that moment, and whether it was remarked on."""

    def look(self, running: Mapping[str, Progress], jobs: Mapping[str, Job]) -> Iterator[Stall]:
        """Yields the jobs whose limit or half of it has passed, each once; after its limit a job
        has the whole time again."""
        now = self._clock()
        self._changed = {key: seen for key, seen in self._changed.items() if key in running}
        for key, item in running.items():
            job = jobs.get(key)
            limit = self._limits.get(job.stage, 0.0) if job else 0.0
            if job is None or not limit:
                continue
            before, since, remarked = self._changed.get(key, (None, now, False))
            if before != item:
                self._changed[key] = (item, now, False)
                continue
            minutes = (now - since) / 60
            if minutes >= limit:
                self._changed[key] = (item, now, False)
                yield Stall(job, minutes, is_over=True)
            elif minutes >= REMARK_SHARE * limit and not remarked:
                self._changed[key] = (item, since, True)
                yield Stall(job, minutes, is_over=False)
