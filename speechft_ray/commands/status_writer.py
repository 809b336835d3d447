"""Keeps the status of a running sweep: in the store for ``speechft status`` on any node, and in
Ray's metrics."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from speechft_ray.core.records import Outcome
from speechft_ray.report.progress import ProgressDisplay
from speechft_ray.sweep.protocols import EncoderRow
from speechft_ray.sweep.status_file import (
    MOST_FAILURES,
    Best,
    Failure,
    SweepStatus,
    count_percent,
    now,
    write_status,
)

WRITE_EVERY_SECONDS = 5.0


class StatusWriter:
    """Writes the status every few seconds and whenever it is asked to."""

    def __init__(
        self,
        name: str,
        fingerprint: str,
        root: Path,
        display: ProgressDisplay,
        show: Callable[[SweepStatus], object] = lambda status: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``root``: that of the store. ``show`` takes each status, too. ``clock`` returns seconds
        from any fixed moment."""
        self._name, self._fingerprint, self._root = name, fingerprint, root
        self._display, self._show, self._clock = display, show, clock
        self._best: Best | None = None
        self._failures: list[Failure] = []
        self._written_at = float("-inf")

    def add_row(self, row: EncoderRow) -> None:
        """Takes a merged encoder that has its scores."""
        self._best = choose_best(self._best, row)

    def add_outcome(self, outcome: Outcome) -> None:
        """Takes the outcome of a job."""
        is_failure = not outcome.ok and not outcome.stopped and outcome.blocked_by is None
        if is_failure and len(self._failures) < MOST_FAILURES:
            self._failures.append(Failure.of(outcome))

    def write_if_due(self) -> None:
        """Writes the status if the last one is old enough; call it often."""
        if self._clock() - self._written_at >= WRITE_EVERY_SECONDS:
            self.write()

    def write(self) -> None:
        """Writes the status now."""
        self._written_at = self._clock()
        jobs = self._display.count_jobs()
        status = SweepStatus(
            sweep=self._name,
            fingerprint=self._fingerprint,
            percent=count_percent(jobs, self._display.sum_parts()),
            jobs=jobs,
            seconds_left=self._display.estimate_seconds_left(),
            best=self._best,
            failures=tuple(self._failures),
            updated_at=now(),
        )
        write_status(self._root, status)
        self._show(status)


def choose_best(best: Best | None, row: EncoderRow) -> Best | None:
    """Returns the better of the best encoder so far and a row, by the dev score. Controls and
    encoders that fine-tuning did not change are none."""
    score = row.dev.get("score")
    is_control = row.params.get("method") == "none" or row.params.get("alpha") in (0.0, 1.0)
    if score is None or is_control or row.untuned or (best and best.dev_score >= score):
        return best
    return Best(name=row.title, dev_score=score, test_score=row.test.get("score"))
