"""Jobs on a Ray cluster: fine-tuning as Ray Tune trials, everything else as Ray tasks."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from speechft_ray.cluster.affinity import select_node
from speechft_ray.cluster.connect import Cluster
from speechft_ray.cluster.metrics import ClusterMetrics
from speechft_ray.cluster.progress import (
    perform_on_worker,
    read_progress_actor,
    start_progress_actor,
)
from speechft_ray.cluster.ray_errors import explain_import_error, shorten
from speechft_ray.cluster.share import Shares, task_options
from speechft_ray.cluster.trials import Trials
from speechft_ray.core.records import Job, Outcome, Place
from speechft_ray.sweep.protocols import Perform, Progress

MAX_RETRIES = 3
"""How often a job runs again after its worker or node was lost (Ray's own default for tasks).
Python errors are not retried."""

HEAD_START_SECONDS = 20.0
"""How long evaluations wait for trials that were submitted and have not started. Tune needs some
seconds to ask for a trial's place; evaluations would take every CPU meanwhile, and tuning, which
most of a sweep waits for, would start last."""

PROGRESS_TIMEOUT_SECONDS = 0.5
"""How long reading the progress may block the driver."""


def make_lost_outcome(job: Job, error: BaseException) -> Outcome:
    """Returns the outcome of a job of which Ray has an error instead of a result."""
    import_sentence = explain_import_error(str(error))
    if import_sentence is not None:
        sentence = import_sentence
    elif isinstance(error, RayTaskError):  # the job never started
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        sentence = (
            f"the worker could not run this job: {lines[-1] if lines else 'no error text'} "
            "(is speechft_ray installed on every node, in the same version?)"
        )
    else:
        sentence = (
            f"the worker or node of this job was lost {MAX_RETRIES + 1} times "
            f"({type(error).__name__}): {shorten(str(error))} If memory ran out, give fewer jobs "
            "to a node or more memory to a job; running the same command again retries it."
        )
    return Outcome(
        stage=job.stage,
        fingerprint=job.fingerprint,
        label=job.label,
        error=sentence,
        traceback=str(error),
    )


class RayExecutor:
    """Runs jobs on the cluster that this process is connected to.

    Jobs travel with the name of ``perform``, so it must be importable on every node; results lie in
    the store, and only facts travel back. ``stop`` also closes ``cluster`` when one is given.
    """

    def __init__(self, perform: Perform, place: Place, *, cluster: Cluster | None = None) -> None:
        self._perform = perform
        self._place = place
        self._cluster = cluster
        self._progress_actor = start_progress_actor()
        self._shares = Shares(place)
        self._metrics = ClusterMetrics()
        self._trials = Trials(perform, place, self._progress_actor, self._shares, self._end)
        self._jobs: dict[str, Job] = {}
        self._tasks: dict[str, Any] = {}
        self._waiting: list[Job] = []
        self._head_start_ends = float("-inf")
        self._progress: Mapping[str, Progress] = {}
        self._ended: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._stopped = False

    def submit(self, job: Job) -> None:
        """Hands a job to Ray. Raises ``RuntimeError`` after ``stop``."""
        if self._stopped:
            raise RuntimeError(f"`{job.label}` was submitted after the executor was stopped")
        self._jobs[job.fingerprint] = job
        with self._lock:
            self._metrics.count_submitted(job)
        if job.stage == "finetune":
            self._trials.submit(job)
            self._head_start_ends = time.monotonic() + HEAD_START_SECONDS
        elif job.stage == "evaluate":
            self._waiting.append(job)
            self._start_waiting()
        else:
            self._start(job)

    def _start_waiting(self) -> None:
        if self._trials.not_started() and time.monotonic() < self._head_start_ends:
            return
        jobs, self._waiting = self._waiting, []
        for job in jobs:
            self._start(job)

    def _start(self, job: Job) -> None:
        share = self._shares.of(job.resources)
        options = task_options(share) | _preference(
            select_node(job, self._place, self._shares.eligible_nodes(share))
        )
        task = _TASK.options(name=job.label, _labels={"stage": job.stage}, **options)
        reference = task.remote(self._perform, job, self._place, self._progress_actor)
        self._tasks[job.fingerprint] = reference
        reference.future().add_done_callback(lambda future: self._end(_outcome(job, future)))

    def outcomes(self, timeout_seconds: float) -> list[Outcome]:
        """Returns what ended since the last call, waiting for the first at most so long."""
        self._start_waiting()
        ended: list[Outcome] = []
        with contextlib.suppress(queue.Empty):
            ended.append(self._ended.get(timeout=timeout_seconds))
            while True:
                ended.append(self._ended.get_nowait())
        return ended

    def slots(self, job: Job) -> int:
        """How many jobs with these resources the nodes of the cluster hold."""
        return self._shares.slots(job.resources)

    def progress(self) -> Mapping[str, Progress]:
        """The jobs that run now; the last known progress when the answer takes longer than half a
        second."""
        if self._stopped:
            return {}
        latest = read_progress_actor(self._progress_actor, PROGRESS_TIMEOUT_SECONDS)
        if latest is not None:
            self._progress = latest
        running = {
            fingerprint: item
            for fingerprint, item in self._progress.items()
            if fingerprint in self._jobs
        }
        with self._lock:
            for fingerprint, item in running.items():
                job = self._jobs.get(fingerprint)  # it may have ended in another thread meanwhile
                if job is not None:
                    self._metrics.add_progress(job, item)
        return running

    def stop(self) -> None:
        """Cancels tasks, ends Tune and its trials, and closes the cluster that was handed over."""
        if self._stopped:
            return
        self._stopped = True
        with self._lock:
            self._waiting.clear()
            self._jobs.clear()  # from here on nothing counts as ended any more
            tasks = list(self._tasks.values())
            self._tasks.clear()
        for reference in tasks:
            with contextlib.suppress(RayError, ValueError):
                ray.cancel(reference, force=True)
        self._trials.stop()
        # The loss of the head may be what ended the run.
        with contextlib.suppress(RayError, ValueError, RuntimeError):
            ray.kill(self._progress_actor)
        if self._cluster is not None:
            self._cluster.close()

    def _end(self, outcome: Outcome) -> None:
        # Called by Ray's and Tune's threads. The first outcome of a job counts: a trial that was
        # lost after its result came in would end twice.
        with self._lock:
            job = self._jobs.pop(outcome.fingerprint, None)
            self._tasks.pop(outcome.fingerprint, None)
            if job is None:
                return
            self._metrics.count_ended(job, outcome)
        self._progress_actor.remove.remote(outcome.fingerprint)
        self._ended.put(outcome)


def _preference(node: str | None) -> dict[str, Any]:
    if node is None:
        return {}
    # `soft` alone would wait for a busy node while others are idle; it goes elsewhere only from one
    # that is gone.
    return {
        "scheduling_strategy": NodeAffinitySchedulingStrategy(
            node, soft=True, _spill_on_unavailable=True
        )
    }


def _perform_task(perform: Perform, job: Job, place: Place, progress_actor: Any) -> dict[str, Any]:
    return perform_on_worker(perform, job, place, progress_actor).model_dump(mode="json")


_TASK = ray.remote(max_retries=MAX_RETRIES, retry_exceptions=False)(_perform_task)


def _outcome(job: Job, future: Future[Any]) -> Outcome:
    error = future.exception()
    return (
        Outcome.model_validate(future.result()) if error is None else make_lost_outcome(job, error)
    )
