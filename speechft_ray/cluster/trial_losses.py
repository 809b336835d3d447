"""Losses of trials: Tune counts them over a whole trial, and breaks on one kind of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ray import tune
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import ActorDiedError, RayActorError, RayError, RayTaskError

from speechft_ray.cluster.losses import Losses
from speechft_ray.cluster.not_picklable import NotPicklable


def survive_memory_errors() -> None:
    """Makes a trial that is killed when memory runs out a lost trial like any other.

    Tune knows ``RayActorError`` and ``RayTaskError`` and breaks on any other error, with all its
    trials; an actor that Ray kills for its memory ends with ``OutOfMemoryError`` (ray 2.60).
    """
    RayActorManager._actor_task_failed = _handle_actor_error


_handle_error = RayActorManager._actor_task_failed


def _handle_actor_error(manager: Any, tracked_actor_task: Any, exception: Exception) -> None:
    # Tune passes these by name.
    if isinstance(exception, RayError) and not isinstance(exception, RayActorError | RayTaskError):
        death = ActorDiedError()
        death.error_msg = str(exception)
        exception = death
    _handle_error(manager, tracked_actor_task=tracked_actor_task, exception=exception)


class LossCallback(NotPicklable, tune.Callback):  # type: ignore[misc]
    """Counts the losses of trials since their last progress, where Tune counts all of them. Runs in
    Tune's thread."""

    def __init__(
        self, losses: Losses, key_of: Callable[[Any], str], on_loss: Callable[[str], object]
    ) -> None:
        """``key_of`` returns the fingerprint of a trial's job; ``on_loss`` gets that of one that
        was lost and will start again."""
        self._losses = losses
        self._key_of, self._on_loss = key_of, on_loss
        self._recovered: dict[str, Any] = {}

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        # Tune counts no loss of a node that was drained.
        key = self._key_of(trial)
        self._on_loss(key)
        if trial.num_failures > self._losses.number(key):
            self._losses.count(key)
            self._recovered[key] = trial
            # At once: Tune may count the next loss in the step in which progress was seen.
            self._losses.call_on_progress(key, partial(_set_failures, trial, 0))

    def on_step_begin(self, iteration: int, trials: Any, **info: Any) -> None:
        for key, trial in self._recovered.items():
            _set_failures(trial, self._losses.number(key))


def _set_failures(trial: Any, number: int) -> None:
    trial.run_metadata.num_failures = number
