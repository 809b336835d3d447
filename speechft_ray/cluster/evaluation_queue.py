"""Evaluations that wait in the driver until Ray may have them."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable

from speechft_ray.cluster.trials import Trials
from speechft_ray.core.records import Job
from speechft_ray.core.resources import ResourceRequest

HEAD_START_SECONDS = 20.0
"""How long evaluations wait for trials that were submitted and have no place. Tune needs some
seconds to ask for one; evaluations would take every CPU meanwhile, and tuning, which most of a
sweep waits for, would start last."""

PER_PLACE, FEWEST = 2, 16
"""Evaluations that Ray has at once, for each that the cluster can run, and at least, so that an
autoscaler sees that more is wanted. Ray gives what is freed to tasks that wait before a trial gets
its resources: with all of them, a fine-tuning that was lost would start behind the last."""

LOOK_SECONDS = 1.0
"""Between two looks at how many can run."""


class EvaluationQueue:
    """Waiting evaluations in their order, and which of them Ray has."""

    def __init__(self, trials: Trials, slots: Callable[[ResourceRequest], int]) -> None:
        """``slots`` returns how many jobs with these resources run at once."""
        self._trials, self._slots = trials, slots
        self._waiting: deque[Job] = deque()
        self._at_ray: dict[str, str] = {}
        """What those that Ray has ask for, as a text, by fingerprint. Other threads end them."""
        self._requests: dict[str, ResourceRequest] = {}
        self._places: dict[str, int] = {}
        """How many of each request run at once, since the last look."""
        self._head_start_ends = self._looked_at = float("-inf")

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
        if not self._waiting or self._has_enough():
            return []
        if not self._trials.have_places():
            if is_preparing:
                self.give_head_start()
            if time.monotonic() < self._head_start_ends:
                return []
            if self._at_ray and self._trials.are_lost():
                return []
        taken = []
        while self._waiting and not self._has_enough():
            job = self._waiting.popleft()
            request = repr(job.resources)
            self._requests[request] = job.resources
            self._at_ray[job.fingerprint] = request
            taken.append(job)
        return taken

    def end(self, fingerprint: str) -> None:
        """Notes that a job has ended, whatever its stage."""
        self._at_ray.pop(fingerprint, None)

    def clear(self) -> None:
        """Forgets those that wait."""
        self._waiting.clear()

    def _has_enough(self) -> bool:
        """Whether what Ray has fills the cluster ``PER_PLACE`` times. Requests differ: eight shares
        of a GPU fill one."""
        if len(self._at_ray) < FEWEST:
            return False
        now = time.monotonic()
        if now - self._looked_at > LOOK_SECONDS:
            self._places.clear()
            self._looked_at = now
        counts = Counter(list(self._at_ray.values()))
        filled = sum(count / self._count_places(request) for request, count in counts.items())
        return filled >= PER_PLACE

    def _count_places(self, request: str) -> int:
        if request not in self._places:
            self._places[request] = self._slots(self._requests[request])
        return self._places[request]
