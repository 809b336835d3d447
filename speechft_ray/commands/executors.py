"""The executor of a sweep: opened with its first job; results count once the store has them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from speechft_ray.commands.parts import RESOURCES, open_executor
from speechft_ray.core.records import Job, Limits, Outcome, Place, Stage
from speechft_ray.core.resources import ResourceRequest
from speechft_ray.storage.open import open_store
from speechft_ray.sweep.claims import LOOK_SECONDS, UnitClaims
from speechft_ray.sweep.protocols import Executor, Progress, StatusSink
from speechft_ray.sweep.status_file import SweepStatus

CONFIRM_SECONDS = 90.0
"""How long a result may take to appear in the store of this node; clients of NFS show old content
for up to 60 s (nfs(5), ``acdirmax``)."""


class OnDemandExecutor:
    """Opens the executor at an address with the first job, so that a finished sweep starts no Ray.

    ``note`` prints a line for people. ``show`` gets the progress of a job of this process while it
    runs; that of a cluster is asked for (``progress``).
    """

    def __init__(
        self,
        address: str | None,
        place: Place,
        note: Callable[[str], None],
        resources: Mapping[Stage, ResourceRequest] = RESOURCES,
        limits: Limits = Limits(),  # noqa: B008  # frozen
        show: Callable[[Mapping[str, Progress]], None] = lambda progress: None,
        claims: UnitClaims | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        """``claims``: those of this driver, where other sweeps may compute the same units.
        ``stop`` ends a job of this process when it is set."""
        self._show, self._claims, self._stop = show, claims, stop
        self._held: dict[str, Job] = {}
        """Jobs that another sweep computes now."""
        self._look_at = float("-inf")
        self._address, self._place, self._note = address, place, note
        self._resources, self._limits = resources, limits
        self._executor: Executor | None = None
        self._store = open_store(place.storage)
        self._unconfirmed: dict[str, tuple[Outcome, float]] = {}
        """Outcomes that the store does not have yet, and when they came."""

    def submit(self, job: Job) -> None:
        """Submits a job to the executor, which is opened if need be; one that another sweep
        computes is held back until that has ended."""
        if self._claims is not None and not self._claims.take(job):
            self._held[job.fingerprint] = job
            return
        self._submit(job)

    def _submit(self, job: Job) -> None:
        if self._executor is None:
            self._executor = open_executor(
                self._address,
                self._place,
                self._note,
                self._resources,
                self._limits,
                self._show,
                self._stop,
            )
        self._executor.submit(job)

    def outcomes(self, timeout_seconds: float) -> list[Outcome]:
        """Returns what ended; nothing before the first job. Raises what the executor raises when
        the run was stopped: ``Interrupted``."""
        ended = self._look_at_held()
        if self._executor is None:
            if self._held and not ended:
                time.sleep(timeout_seconds)
            return ended
        now = time.monotonic()
        for outcome in self._executor.outcomes(0.0 if ended else timeout_seconds):
            self._unconfirmed[outcome.fingerprint] = (outcome, now)
        for outcome, since in list(self._unconfirmed.values()):
            checked = self._check_store(outcome, time.monotonic() - since)
            if checked is not None:
                ended.append(checked)
                del self._unconfirmed[outcome.fingerprint]
        if self._claims is not None:
            for outcome in ended:
                self._claims.release(outcome.fingerprint)
        return ended

    def _look_at_held(self) -> list[Outcome]:
        """Returns the outcomes of jobs that another sweep has finished, and submits those that it
        gave up. A look takes a twentieth of the time at most."""
        if self._claims is None or not self._held or time.monotonic() < self._look_at:
            return []
        begin, ended = time.monotonic(), []
        for key, job in list(self._held.items()):
            if not self._claims.take(job):
                continue
            del self._held[key]
            if self._store.look_again(job.stage, key):
                self._claims.release(key)
                facts = self._store.manifest(job.stage, key)
                ended.append(
                    Outcome(stage=job.stage, fingerprint=key, label=job.label, facts=facts)
                )
            else:
                self._submit(job)
        now = time.monotonic()
        self._look_at = now + max(LOOK_SECONDS, 20 * (now - begin))
        return ended

    def _check_store(self, outcome: Outcome, seconds: float) -> Outcome | None:
        """Returns the outcome once the store has what it says; an error after ``CONFIRM_SECONDS``;
        ``None`` before."""
        stage, key = outcome.stage, outcome.fingerprint
        if not outcome.ok or self._store.look_again(stage, key):
            return outcome
        if seconds < CONFIRM_SECONDS:
            return None
        sentence = (
            f"its worker has published it, but {self._store.address}/{stage}/{key} does not appear "
            "here: the worker's node sees another folder under this path. Mount the storage folder "
            "on every node under the same path and run the command again"
        )
        return outcome.model_copy(update={"error": sentence, "facts": {}})

    def slots(self, job: Job) -> int:
        """Returns how many jobs like this one may be submitted at once: those that run, 1 before
        the first job, which opens the executor, and those of its stage that are held back, since
        they take no slot."""
        held = sum(other.stage == job.stage for other in self._held.values())
        return held + (self._executor.slots(job) if self._executor else 1)

    def progress(self) -> Mapping[str, Progress]:
        """Returns what runs; nothing before the first job."""
        return self._executor.progress() if self._executor else {}

    def show_status(self, status: SweepStatus) -> None:
        """Shows the status of the sweep where the executor can."""
        if isinstance(self._executor, StatusSink):
            self._executor.show_status(status)

    def describe_cluster(self) -> dict[str, str | float]:
        """Returns address, nodes, CPUs and GPUs of the Ray cluster; empty where none was opened."""
        cluster = getattr(self._executor, "cluster", None)
        if cluster is None:
            return {}
        counts = {"nodes": cluster.nodes, "CPUs": cluster.cpus, "GPUs": cluster.gpus}
        return {"address": cluster.address, **counts}

    def stop(self) -> None:
        """Stops the executor if it was opened, and leaves all units to other sweeps."""
        self._held.clear()
        if self._executor:
            self._executor.stop()
        if self._claims is not None:
            self._claims.release_all()
