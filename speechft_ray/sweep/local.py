"""Jobs in this very process, one at a time: for debugging, small runs and tests. Also how a job is
run without raising."""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Mapping

from speechft_ray.core.errors import Interrupted, UserError
from speechft_ray.core.records import Job, Outcome, Place
from speechft_ray.sweep.protocols import Perform, Progress, ReportProgress


def perform_safely(perform: Perform, job: Job, place: Place, report: ReportProgress) -> Outcome:
    """Runs one job and returns what came of it, so that one dead job does not end a sweep.

    A ``UserError`` gives its sentence; any other exception one line and its traceback.
    ``Interrupted``, ``KeyboardInterrupt`` and ``SystemExit`` pass through: then it is the run that
    ends, not the job that failed.
    """
    started = time.monotonic()

    def ended(**result: object) -> Outcome:
        known = {"stage": job.stage, "fingerprint": job.fingerprint, "label": job.label}
        return Outcome.model_validate({**known, **result, "seconds": time.monotonic() - started})

    try:
        return ended(
            facts=dict(perform(job, place, report))
        )  # facts that are not JSON fail here, inside the job
    except Interrupted:
        raise
    except UserError as error:
        return ended(error=_one_line(str(error)))
    except Exception as error:
        return ended(
            error=_one_line(f"{type(error).__name__}: {error}"), traceback=traceback.format_exc()
        )


def read_progress(latest: Mapping[str, float]) -> Progress:
    """Returns what a job reported as ``Progress``: ``done``, ``total``, and everything else as
    curve values."""
    values = {name: float(value) for name, value in latest.items() if name not in ("done", "total")}
    return Progress(
        done=float(latest.get("done", 0.0)), total=float(latest.get("total", 0.0)), values=values
    )


class LocalExecutor:
    """Runs each job inside ``outcomes()``, in the order of submission, in the calling thread; none
    is stopped early."""

    def __init__(self, perform: Perform, place: Place) -> None:
        self._perform = perform
        self._place = place
        self._waiting: deque[Job] = deque()
        self._running: dict[str, Progress] = {}
        self._stopped = False

    def submit(self, job: Job) -> None:
        """Queues a job. Raises ``RuntimeError`` after ``stop``."""
        if self._stopped:
            raise RuntimeError(f"`{job.label}` was submitted after the executor was stopped")
        self._waiting.append(job)

    def outcomes(self, timeout_seconds: float) -> list[Outcome]:
        """Runs the next job to its end, however long that takes; with none queued returns an empty
        list at once."""
        if not self._waiting:
            return []
        job = self._waiting.popleft()
        latest: dict[str, float] = {}

        def report(values: Mapping[str, float]) -> None:
            latest.update(values)
            self._running = {job.fingerprint: read_progress(latest)}

        report({})
        try:
            return [perform_safely(self._perform, job, self._place, report)]
        finally:
            self._running = {}

    def slots(self, job: Job) -> int:
        """One at a time."""
        return 1

    def progress(self) -> Mapping[str, Progress]:
        """The job that runs now, if any: read it from another thread, or from inside the job."""
        return self._running

    def stop(self) -> None:
        """Forgets the jobs that wait. May be called twice."""
        self._stopped = True
        self._waiting.clear()


def _one_line(text: str) -> str:
    return " ".join(text.split())
