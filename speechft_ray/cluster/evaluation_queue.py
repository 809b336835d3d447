"""Evaluations that wait in the driver until Ray may have them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from speechft_ray.cluster.trials import Trials
from speechft_ray.core.records import Job
from speechft_ray.core.resources import ResourceRequest

HEAD_START_SECONDS = 20.0
"""How long evaluations wait for trials that were submitted and have no place. Tune needs some
seconds to ask for one; evaluations would take every CPU meanwhile, and tuning, which most of a
sweep waits for, would start last."""

PER_PLACE, FEWEST = 2, 16
"""Evaluations that Ray has at once, for each that can run, and at least, so that an autoscaler sees
that more is wanted. Ray gives what is freed to tasks that wait before a trial gets its resources:
with all of them, a fine-tuning that was lost would start behind the last."""

LOOK_SECONDS = 1.0
"""Between two looks at how many can run."""


class EvaluationQueue:
    """Waiting evaluations in their order, and which of them Ray has."""

    def __init__(self, trials: Trials, slots: Callable[[ResourceRequest], int]) -> None:
        """``slots`` returns how many jobs with these resources run at once."""
        self._trials, self._slots = trials, slots
        self._waiting: deque[Job] = deque()
        self._at_ray: set[str] = set()
        """Fingerprints of those that Ray has."""
        self._head_start_ends = float("-inf")
        self._most, self._looked_at = FEWEST, float("-inf")

    def put(self, job: Job) -> None:
        """Adds an evaluation."""
        self._waiting.append(job)

    def give_head_start(self) -> None:
        """Lets evaluations wait for trials that have no place yet, from now on."""
        self._head_start_ends = time.monotonic() + HEAD_START_SECONDS

    def take(self, *, is_preparing: bool) -> list[Job]:
        """Returns evaluations that Ray gets now.

        None while trials that were submitted have their head start, which begins anew while corpora
        are prepared, since that takes CPUs, too. None while a trial that was lost waits for its
        resources and evaluations run, which free them when they end.
        """
        if not self._waiting or len(self._at_ray) >= self._count_most():
            return []
        if not self._trials.have_places():
            if is_preparing:
                self.give_head_start()
            if time.monotonic() < self._head_start_ends:
                return []
            if self._at_ray and self._trials.are_lost():
                return []
        taken = []
        while self._waiting and len(self._at_ray) < self._most:
            taken.append(self._waiting.popleft())
            self._at_ray.add(taken[-1].fingerprint)
        return taken

    def end(self, fingerprint: str) -> None:
        """Notes that a job has ended, whatever its stage."""
        self._at_ray.discard(fingerprint)

    def clear(self) -> None:
        """Forgets those that wait."""
        self._waiting.clear()

    def _count_most(self) -> int:
        now = time.monotonic()
        if now - self._looked_at > LOOK_SECONDS:
            places = self._slots(self._waiting[0].resources)
            self._most, self._looked_at = max(FEWEST, PER_PLACE * places), now
        return self._most
