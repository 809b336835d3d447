"""Runs fine-tuning jobs as trials of Ray Tune experiments.

Jobs are added to a running experiment. An experiment ends when no job waits and none runs, and the
next job opens another: one that waits for its next trial would block inside Tune for ten minutes
and keep the GPU of its last one. Tune schedules and retries trials; the store alone says which jobs
are done. Tune's own snapshot is never read back, since it is written at most every 10 s and a
damaged one silently starts over. A lost trial resumes from the checkpoints in its own work folder.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.execution import class_cache
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper
from ray.util import placement_group_table

from speechft_ray.cluster.affinity import avoid_nodes
from speechft_ray.cluster.losses import Losses, describe_losses
from speechft_ray.cluster.not_picklable import NotPicklable
from speechft_ray.cluster.ray_errors import explain_import_error
from speechft_ray.cluster.share import Shares
from speechft_ray.cluster.stopping import EarlyStopping
from speechft_ray.cluster.trainable import hide_calls, make_trainable
from speechft_ray.cluster.trial_losses import LossCallback, survive_memory_errors
from speechft_ray.core.records import Job, Outcome, Place
from speechft_ray.storage.open import find_local_root
from speechft_ray.sweep.protocols import Perform

LOOK_SECONDS = 0.2
"""Between two questions to the head for the resources of trials."""

STOP_SECONDS = 30.0
"""How long stopping waits for Tune, which kills trials that do not report for 10 s."""

SETTINGS = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of the command line stay good inside trials
    # the old output engine is silent with `verbose=0`; the new one still prints tables and errors
    "RAY_AIR_NEW_OUTPUT": "0",
    # no csv, json and TensorBoard copies of what the store has
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the Outcome carries the error
    # Tune's own value for custom searchers is 1: a large cluster would fill up slowly
    "TUNE_MAX_PENDING_TRIALS_PG": "16",
    # waiting for evaluations to end is normal here
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000000",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S_AUTOSCALER": "1000000000",
}
"""Environment variables that Tune reads when an experiment starts (ray ``tune/constants.py``,
2.60)."""


class Trials:
    """Tune experiments in a thread of their own, one after the other."""

    def __init__(
        self,
        perform: Perform,
        place: Place,
        progress_actor: Any,
        shares: Shares,
        losses: Losses,
        end: Callable[[Outcome], None],
    ) -> None:
        self._perform = perform
        self._place = place
        self._progress_actor = progress_actor
        self._shares = shares
        self._losses = losses
        self._end = end
        self._searcher = JobSearcher()
        self._stops = EarlyStopping()
        self._jobs: dict[str, Job] = {}
        self._started: set[str] = set()
        self._lost: set[str] = set()
        """Started trials that were lost, or move, and have not started again."""
        self._thread: threading.Thread | None = None
        self._broken: str | None = None
        self._opened = 0
        self._breaks = 0
        self._avoid: dict[str, str] = {}
        self._places, self._looked_at = 0, float("-inf")

    def submit(self, job: Job) -> None:
        """Queues a fine-tuning job as the next trial; one that has run moves to another node."""
        self._jobs[job.fingerprint] = job
        if job.fingerprint in self._started:
            self._note_loss(job.fingerprint)
        if self._broken is not None:
            self._fail(job.fingerprint, "Ray Tune has stopped", self._broken)
            return
        self._searcher.put(self._config(job))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="speechft-tune", daemon=True)
            self._thread.start()

    def avoid(self, nodes: Collection[str]) -> None:
        """Gives these nodes no trial that is submitted from now on."""
        self._avoid = avoid_nodes(nodes)

    def have_places(self) -> bool:
        """Whether every submitted trial has its resources. Places that another driver holds count,
        too, since Ray does not tell them apart."""
        if self._jobs.keys() <= self._started:
            return True
        if time.monotonic() - self._looked_at >= LOOK_SECONDS:
            states = [group["state"] for group in placement_group_table().values()]
            self._places, self._looked_at = states.count("CREATED"), time.monotonic()
        return self._places >= len(self._jobs)

    def are_lost(self) -> bool:
        """Whether a trial that ran was lost, or moves, and has not started again."""
        return not self._lost.isdisjoint(self._jobs)

    def _note_start(self, fingerprint: str) -> None:
        self._started.add(fingerprint)
        self._lost.discard(fingerprint)

    def _note_loss(self, fingerprint: str) -> None:
        self._progress_actor.remove.remote(fingerprint)  # it waits
        self._started.discard(fingerprint)
        self._lost.add(fingerprint)

    def stop(self) -> None:
        """Ends the experiment and its trials. May be called twice."""
        self._jobs.clear()
        self._searcher.close()
        if self._thread is not None:
            self._thread.join(timeout=STOP_SECONDS)

    def _config(self, job: Job) -> dict[str, Any]:
        share = self._shares.of(job.resources)
        return {"job": job.model_dump_json(), "avoid": self._avoid, **share.model_dump()}

    def _run(self) -> None:
        try:
            _prepare()
        except Exception as error:
            self._give_up(error)
        while self._broken is None and self._searcher.wait():
            try:
                self._tuner().fit()
            except Exception as error:  # Tune itself broke, not a trial
                self._breaks += 1
                if self._breaks > self._losses.retries:
                    self._give_up(error)
                else:
                    self._searcher.replace([self._config(job) for job in self._jobs.values()])

    def _give_up(self, error: Exception) -> None:
        self._broken = traceback.format_exc()
        for fingerprint in list(self._jobs):
            self._fail(
                fingerprint, f"Ray Tune broke: {type(error).__name__}: {error}", self._broken
            )

    def _tuner(self) -> tune.Tuner:
        self._opened += 1
        return tune.Tuner(
            make_trainable(self._perform, self._place, self._progress_actor),
            tune_config=tune.TuneConfig(
                search_alg=self._searcher,
                scheduler=self._stops,
                num_samples=-1,
                trial_name_creator=_name,
                trial_dirname_creator=_name,
            ),
            run_config=tune.RunConfig(
                name=f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{self._opened}",
                storage_path=str(find_local_root(self._place.storage).absolute() / "tune"),
                failure_config=tune.FailureConfig(max_failures=self._losses.retries),
                stop=ClosedStopper(self._searcher.closed),
                callbacks=[
                    OutcomeCallback(
                        self._note_start, self._finish, self._fail, self._stops.stopped
                    ),
                    LossCallback(
                        self._losses, lambda trial: _job(trial).fingerprint, self._note_loss
                    ),
                ],
                verbose=0,
            ),
        )

    def _finish(self, outcome: Outcome) -> None:
        if self._jobs.pop(outcome.fingerprint, None) is not None:
            self._breaks = 0
            self._end(outcome)

    def _fail(self, fingerprint: str, error: str, text: str) -> None:
        job = self._jobs.pop(fingerprint, None)
        if job is not None:
            self._end(
                Outcome(
                    stage=job.stage,
                    fingerprint=fingerprint,
                    label=job.label,
                    error=error,
                    traceback=text,
                )
            )


class JobSearcher(NotPicklable, Searcher):  # type: ignore[misc]  # Ray comes without types
    """Suggests submitted jobs in their order; ends the experiment when none waits and none runs."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = threading.Event()
        self._waiting: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._changed = threading.Event()
        self._running: set[str] = set()

    def put(self, config: dict[str, Any]) -> None:
        """Adds a job."""
        self._waiting.put(config)
        self._changed.set()

    def replace(self, configs: Iterable[dict[str, Any]]) -> None:
        """Starts over with these jobs, after an experiment broke."""
        while not self._waiting.empty():
            self._waiting.get()
        self._running.clear()
        for config in configs:
            self.put(config)

    def close(self) -> None:
        """Ends the running experiment and prevents another."""
        self.closed.set()
        self._changed.set()

    def wait(self) -> bool:
        """Waits for a job and leaves it in the queue; returns ``False`` after ``close``."""
        while self._waiting.empty() and not self.closed.is_set():
            self._changed.wait()
            self._changed.clear()
        return not self.closed.is_set()

    def suggest(self, trial_id: str) -> Any:
        """Returns the next job, ``None`` while others run (Tune asks again), or ``FINISHED``."""
        if self.closed.is_set():
            return Searcher.FINISHED
        try:
            config = self._waiting.get_nowait()
        except queue.Empty:
            return None if self._running else Searcher.FINISHED
        self._running.add(trial_id)
        return config

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Removes a trial from the running ones, whether it failed or not."""
        self._running.discard(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Saves nothing: the store has what is done."""

    def restore(self, checkpoint_path: str) -> None:
        """Restores nothing."""


class ClosedStopper(NotPicklable, Stopper):  # type: ignore[misc]
    def __init__(self, closed: threading.Event) -> None:
        self._closed = closed

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._closed.is_set()


class OutcomeCallback(NotPicklable, tune.Callback):  # type: ignore[misc]
    """Passes an outcome on as soon as Tune has it, so that its merges start at once.

    Runs in Tune's thread of the driver.
    """

    def __init__(
        self,
        started: Callable[[str], None],
        finish: Callable[[Outcome], None],
        fail: Callable[[str, str, str], None],
        stopped: Mapping[str, str],
    ) -> None:
        self._started = started
        self._finish = finish
        self._fail = fail
        self._stopped = stopped
        self._answered: set[str] = set()
        """Trials that have told their outcome. What comes of them afterwards says nothing: their
        job may run again elsewhere."""

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._started(_job(trial).fingerprint)

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "outcome" in result:
            self._answered.add(trial.trial_id)
            self._finish(Outcome.model_validate_json(result["outcome"]))

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        if trial.trial_id in self._answered:
            return
        job, sentence = _job(trial), self._stopped.get(trial.trial_id)
        if sentence is not None:
            ended = Outcome(
                stage=job.stage,
                fingerprint=job.fingerprint,
                label=job.label,
                error=sentence,
                stopped=True,
            )
            self._finish(ended)
        self._fail(job.fingerprint, "the trial ended without a result", "")

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        if trial.trial_id in self._answered:
            return
        text = _error_of(trial)
        sentence = explain_import_error(text) or (
            "the worker or node of this fine-tuning was lost "
            + describe_losses(trial.num_failures, text)
        )
        self._fail(_job(trial).fingerprint, sentence, text)


def _job(trial: Any) -> Job:
    return Job.model_validate_json(trial.config["job"])


def _name(trial: Any) -> str:
    # Tune needs the trial id in it, and makes a folder of it.
    label = "".join(char if char.isalnum() or char in "._-" else "-" for char in _job(trial).label)
    return f"{label[:60]}-{trial.trial_id}"


def _error_of(trial: Any) -> str:
    try:
        return Path(trial.error_file).read_text(encoding="utf-8")
    except (OSError, TypeError):
        return "no error text from Ray Tune"


def _prepare() -> None:
    os.environ.update(SETTINGS)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    # Tune copies AWS keys from the driver into the runtime environment of every trial, where the
    # dashboard shows them.
    class_cache.ENV_VARS_TO_PROPAGATE = {
        name for name in class_cache.ENV_VARS_TO_PROPAGATE if not name.startswith("AWS_")
    }
    survive_memory_errors()
    hide_calls()
