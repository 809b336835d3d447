"""Jobs on a Ray cluster: fine-tuning as Ray Tune trials, everything else as Ray tasks."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

from speechft_ray.cluster.affinity import avoid_nodes, select_node
from speechft_ray.cluster.connect import Cluster
from speechft_ray.cluster.draining import DrainWatch
from speechft_ray.cluster.evaluation_queue import EvaluationQueue
from speechft_ray.cluster.head import Head, end_process
from speechft_ray.cluster.losses import Losses, describe_losses, is_loss
from speechft_ray.cluster.metrics import ClusterMetrics
from speechft_ray.cluster.progress import (
    ProgressReader,
    kill_worker_of,
    start_progress_actor,
)
from speechft_ray.cluster.ray_errors import explain_import_error
from speechft_ray.cluster.share import Shares, describe_wait, list_nodes, task_options
from speechft_ray.cluster.tasks import GPU_TASKS, TASKS, prefer_node
from speechft_ray.cluster.trials import Trials
from speechft_ray.cluster.unfit_nodes import FORGET_SECONDS, UnfitNodes
from speechft_ray.cluster.watchdog import Stall, Watchdog
from speechft_ray.core.records import Job, Limits, Outcome, Place
from speechft_ray.core.resources import ResourceRequest
from speechft_ray.sweep.protocols import Perform, Progress
from speechft_ray.sweep.status_file import SweepStatus

WHOLE_NODE = 1e6
"""More CPUs than any node has; such a request gets all those of the largest."""

WAIT_SECONDS = 120.0
"""How long no job may run before a line says what is waited for: workers of a cluster that starts
import torch for a minute."""

PROGRESS_TIMEOUT_SECONDS = 0.5
"""How long reading the progress may block the driver."""


def make_lost_outcome(job: Job, error: BaseException, losses: int = 1) -> Outcome:
    """Returns the outcome of a job of which Ray has an error instead of a result.

    ``losses``: how often its worker or node was lost without progress in between.
    """
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
        sentence = f"the worker or node of this job was lost {describe_losses(losses, error)}"
    return make_failed_outcome(job, sentence, str(error))


def make_failed_outcome(job: Job, error: str, text: str | None = None) -> Outcome:
    """Returns the outcome of a job that failed with a sentence, and perhaps a traceback."""
    return Outcome(
        stage=job.stage,
        fingerprint=job.fingerprint,
        label=job.label,
        error=error,
        traceback=text,
    )


class RayExecutor:
    """Runs jobs on the cluster that this process is connected to.

    Jobs travel with the name of ``perform``, so it must be importable on every node; results lie in
    the store, and only facts travel back. ``stop`` also closes ``cluster`` when one is given.
    """

    def __init__(
        self,
        perform: Perform,
        place: Place,
        *,
        cluster: Cluster | None = None,
        limits: Limits = Limits(),  # noqa: B008  # frozen
        note: Callable[[str], object] = lambda text: None,
    ) -> None:
        """``note`` prints a line for people."""
        self._perform = perform
        self._place = place
        self.cluster = cluster
        self._head = Head(ray.get_runtime_context().gcs_address)
        self._head.watch(end_process)
        self._progress_actor = start_progress_actor()
        self._reader = ProgressReader(self._progress_actor, PROGRESS_TIMEOUT_SECONDS)
        self._shares = Shares(place)
        self._metrics = ClusterMetrics()
        self._losses = Losses(limits.retries)
        self._watchdog = Watchdog(limits)
        self._drains = DrainWatch()
        self._unfit = UnfitNodes()
        self._refused: queue.SimpleQueue[tuple[Job, Outcome]] = queue.SimpleQueue()
        self._stalled: dict[str, float] = {}
        """Minutes without progress after which a job was killed."""
        self._note = note
        self._trials = Trials(
            perform, place, self._progress_actor, self._shares, self._losses, self._end
        )
        self._jobs: dict[str, Job] = {}
        self._tasks: dict[str, Any] = {}
        self._queue = EvaluationQueue(self._trials, self._shares.slots)
        self._corpora: list[str] = []
        """Fingerprints of the corpora that were submitted."""
        self._progress: Mapping[str, Progress] = {}
        self._ended: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._lost: queue.SimpleQueue[tuple[Job, BaseException]] = queue.SimpleQueue()
        self._lost_once: set[str] = set()
        self._whole_gpus: set[str] = set()
        """Jobs whose share of a GPU was too small."""
        self._lock = threading.Lock()
        self._stopped = False
        self._idle_since = time.monotonic()

    def submit(self, job: Job) -> None:
        """Hands a job to Ray. Raises ``RuntimeError`` after ``stop``, and ``HeadLost``."""
        if self._stopped:
            raise RuntimeError(f"`{job.label}` was submitted after the executor was stopped")
        self._head.wait()
        self._jobs[job.fingerprint] = job
        with self._lock:
            self._metrics.count_submitted(job)
        if job.stage == "evaluate":
            self._queue.put(job)
            self._start_waiting()
            return
        if job.stage == "corpus":
            self._corpora.append(job.fingerprint)
        self._start(job)
        if job.stage == "finetune":
            self._queue.give_head_start()

    def _start_waiting(self) -> None:
        is_preparing = any(key in self._jobs for key in self._corpora)
        for job in self._queue.take(is_preparing=is_preparing):
            self._start(job)

    def _start(self, job: Job) -> None:
        """Hands a job to Ray, or ends it where every node that could run it is unfit."""
        share = self._choose_share(job)
        nodes, unfit = self._shares.eligible_nodes(share), self._unfit.list()
        if (problem := self._unfit.explain(nodes)) is not None:
            self._end(make_failed_outcome(job, problem))
            return
        if job.stage == "finetune":
            self._trials.avoid(unfit)
            self._trials.submit(job)
            return
        options = task_options(share)
        if unfit:
            options["label_selector"] = {**share.labels, **avoid_nodes(unfit)}
        elif not share.labels:
            options |= prefer_node(select_node(job, self._place, nodes))
        tasks = GPU_TASKS if share.gpus else TASKS
        task = tasks["again" if job.fingerprint in self._lost_once else job.stage]
        task = task.options(name=job.label, _labels={"stage": job.stage}, **options)
        reference = task.remote(self._perform, job, self._place, self._progress_actor)
        self._tasks[job.fingerprint] = reference
        reference.future().add_done_callback(lambda future: self._end_task(job, future))

    def _choose_share(self, job: Job) -> ResourceRequest:
        """Returns what a job asks for now: more CPUs after memory ran out, where a node that may
        get it has them, and never fewer than at first."""
        share, wide = self._shares.of(self._ask(job)), self._shares.of(self._widen(job))
        nodes = set(self._shares.eligible_nodes(wide)) - self._unfit.list()
        return wide if wide.cpus > share.cpus and nodes else share

    def _widen(self, job: Job) -> ResourceRequest:
        """Returns what a job asks for: after memory ran out, more CPUs, so that fewer jobs run
        beside it; its last attempt gets a node for itself. Nobody asked for those CPUs: they are
        cut to what a node has."""
        times, asked = self._losses.out_of_memory(job.fingerprint), self._ask(job)
        if not times:
            return asked
        last = self._losses.number(job.fingerprint) >= self._losses.retries
        cpus = WHOLE_NODE if last else max(1.0, job.resources.cpus) * 2**times
        explicit = tuple(name for name in job.resources.explicit if name != "cpus")
        return asked.model_copy(update={"cpus": cpus, "explicit": explicit})

    def _ask(self, job: Job) -> ResourceRequest:
        """Returns what a job asks for at first: a whole GPU once the memory of a shared one ran
        out."""
        if job.fingerprint in self._whole_gpus:
            return job.resources.model_copy(update={"gpu_memory_bytes": 0})
        return job.resources

    def _end_task(self, job: Job, future: Future[Any]) -> None:
        # Called by a thread of Ray.
        error = future.exception()
        if error is not None and is_loss(error):
            self._lost.put((job, error))
        elif error is not None:
            self._end(make_lost_outcome(job, error))
        else:
            self._end(Outcome.model_validate(future.result()))

    def _start_lost(self) -> None:
        """Starts tasks again that lost their worker, as often as ``retries`` says."""
        while not self._lost.empty():
            job, error = self._lost.get()
            if job.fingerprint not in self._jobs:
                continue
            self._progress_actor.remove.remote(job.fingerprint)  # it waits
            self._lost_once.add(job.fingerprint)
            losses = self._losses.count(job.fingerprint, isinstance(error, OutOfMemoryError))
            if losses > self._losses.retries:
                self._end(make_lost_outcome(job, error, losses))
            else:
                self._start(job)

    def _start_refused(self) -> None:
        """Starts jobs elsewhere that left their node, that it refused, or whose share of a GPU was
        too small."""
        while not self._refused.empty():
            job, outcome = self._refused.get()
            self._progress_actor.remove.remote(job.fingerprint)  # it runs no more
            if outcome.lacks_gpu_share:
                self._whole_gpus.add(job.fingerprint)
                self._note(f"{job.label}: {outcome.error} It runs again with a whole GPU.")
            if outcome.unfit_node is not None:
                self._shares.look_again()  # the node itself may have just come
                if self._unfit.add(outcome.unfit_node, outcome.error or ""):
                    self._note(
                        f"{outcome.error}. Until then this run gives it no jobs; it is tried again "
                        f"every {FORGET_SECONDS / 60:g} min."
                    )
            self._lost_once.add(job.fingerprint)
            self._start(job)

    def outcomes(self, timeout_seconds: float) -> list[Outcome]:
        """Returns what ended since the last call, waiting for the first at most so long. Raises
        ``HeadLost``."""
        if not self._stopped:
            self._head.wait()
        self._start_lost()
        self._start_refused()
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
        if self._stopped or not self._head.answers():
            return {}
        latest = self._reader.read()
        # Points are new once.
        self._progress = (
            {key: item._replace(points=()) for key, item in self._progress.items()}
            if latest is None
            else latest
        )
        for node in self._drains.look():
            self._note(f"Node {node} will be taken away: its jobs save their state and move.")
            self._progress_actor.add_draining.remote(node)
        if latest is not None:
            for stall in list(self._watchdog.look(latest, self._jobs)):
                self._handle_stall(stall)
        running = {
            fingerprint: item
            for fingerprint, item in self._progress.items()
            if fingerprint in self._jobs
        }
        self._losses.see(running)
        self._say_what_is_waited_for(bool(running))
        with self._lock:
            for fingerprint, item in running.items():
                job = self._jobs.get(fingerprint)  # it may have ended in another thread meanwhile
                if job is not None:
                    self._metrics.add_progress(job, item)
        return running

    def _say_what_is_waited_for(self, is_running: bool) -> None:
        """Says once, when no job has run for ``WAIT_SECONDS``, what the next one asks for and what
        the cluster has."""
        now = time.monotonic()
        if is_running or not self._jobs:
            self._idle_since = now
        elif now - self._idle_since > WAIT_SECONDS:
            self._idle_since = float("inf")
            job = next(iter(self._jobs.values()), None)
            if job is not None:
                self._note(describe_wait(job, self._choose_share(job), list_nodes()))

    def _handle_stall(self, stall: Stall) -> None:
        job, minutes = stall.job, stall.minutes
        if not stall.is_over:
            self._note(f"{job.label}: no progress for {minutes:.3g} min.")
            return
        worker = kill_worker_of(self._progress_actor, job.fingerprint)
        self._stalled[job.fingerprint] = minutes
        self._note(
            f"{job.label}: no progress for {minutes:.3g} min (--stall-minutes); "
            + (f"{worker} is killed, and the job runs again." if worker else "its worker is gone.")
        )

    def show_status(self, status: SweepStatus) -> None:
        """Sets Ray's metrics of the whole sweep."""
        if not self._head.answers():
            return
        with contextlib.suppress(RayError, RuntimeError, ConnectionError):
            total, free = ray.cluster_resources(), ray.available_resources()
            with self._lock:
                self._metrics.set_status(status)
                self._metrics.set_busy(total, free)

    def stop(self) -> None:
        """Cancels tasks, ends Tune and its trials, and closes the cluster that was handed over."""
        if self._stopped:
            return
        self._stopped = True
        self._head.close()
        with self._lock:
            self._queue.clear()
            self._jobs.clear()  # from here on nothing counts as ended any more
            tasks = list(self._tasks.values())
            self._tasks.clear()
        if not self._head.answers():
            return  # every call to Ray would wait for the head, and then end this process
        for reference in tasks:
            with contextlib.suppress(RayError, ValueError):
                ray.cancel(reference, force=True)
        self._trials.stop()
        with contextlib.suppress(RayError, ValueError, RuntimeError):
            ray.kill(self._progress_actor)
        if self.cluster is not None:
            self.cluster.close()

    def _end(self, outcome: Outcome) -> None:
        # Called by Ray's and Tune's threads. The first outcome of a job counts: a trial that was
        # lost after its result came in would end twice.
        with self._lock:
            has_left = outcome.unfit_node is not None or outcome.leaves_node
            if (has_left or outcome.lacks_gpu_share) and outcome.fingerprint in self._jobs:
                self._refused.put((self._jobs[outcome.fingerprint], outcome))
                return
            job = self._jobs.pop(outcome.fingerprint, None)
            self._tasks.pop(outcome.fingerprint, None)
            self._queue.end(outcome.fingerprint)
            if job is None:
                return
            self._metrics.count_ended(job, outcome)
        minutes = self._stalled.get(outcome.fingerprint)
        if minutes is not None and outcome.error is not None:
            sentence = f" Its last worker was killed after {minutes:.3g} min without progress."
            outcome = outcome.model_copy(update={"error": outcome.error + sentence})
        self._progress_actor.remove.remote(outcome.fingerprint)
        self._ended.put(outcome)
