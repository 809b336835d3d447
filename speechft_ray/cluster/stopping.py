"""Early stopping of fine-tuning runs by Ray Tune's own schedulers.

A run is compared with runs of the same title alone, by their validations at the same share of their
updates, so that runs of different length can be compared. Which runs are stopped depends on which
runs are active at the same time and on their speed: a second execution may stop others.
"""

from __future__ import annotations

from typing import Any

from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from speechft_ray.cluster.not_picklable import NotPicklable
from speechft_ray.core.records import Job
from speechft_ray.core.specs import StopSpec

SHARE, GOODNESS = "share", "goodness"
"""Names in the results of a trial: share of its updates at a validation, and what it found, higher
is better."""

FIRST_RUNG = 0.01
"""Rungs are ``grace_period`` times powers of ``reduction_factor``, so ``asha`` cannot begin at 0.

It begins here at the earliest.
"""


def build_rule(spec: StopSpec) -> TrialScheduler:
    """Returns Tune's scheduler of that rule."""
    if spec.rule == "asha":
        return AsyncHyperBandScheduler(
            time_attr=SHARE,
            metric=GOODNESS,
            mode="max",
            max_t=1,
            grace_period=max(FIRST_RUNG, spec.grace_period),
            reduction_factor=spec.reduction_factor,
            stop_last_trials=False,
        )
    # Without a limit this rule pauses trials that it cannot compare yet, and a paused trial loses
    # what it has not saved.
    never = float("inf")
    return MedianStoppingRule(
        time_attr=SHARE,
        metric=GOODNESS,
        mode="max",
        grace_period=spec.grace_period,
        min_time_slice=never,
    )


class EarlyStopping(NotPicklable, FIFOScheduler):  # type: ignore[misc]  # Ray comes without types
    """Runs trials in their order and asks the rule of their title whether they go on; a job without
    ``stop`` always does."""

    def __init__(self) -> None:
        super().__init__()
        self.stopped: dict[str, str] = {}
        """By trial id: the sentence that gives the reason."""
        self._rules: dict[str, TrialScheduler] = {}
        self._latest: dict[str, dict[str, float]] = {}

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Makes a trial known to its rule."""
        if rule := self._rule(trial):
            rule.on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Returns whether a trial goes on after a validation; after its last one it always does."""
        rule = self._rule(trial)
        if rule is None or SHARE not in result or GOODNESS not in result:
            return str(TrialScheduler.CONTINUE)
        self._latest[trial.trial_id] = latest = {
            SHARE: float(result[SHARE]),
            GOODNESS: float(result[GOODNESS]),
        }
        if latest[SHARE] >= 1:
            return str(TrialScheduler.CONTINUE)
        decision = str(rule.on_trial_result(tune_controller, trial, latest))
        if decision == TrialScheduler.STOP:
            self.stopped[trial.trial_id] = _sentence(_job(trial), latest)
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Passes an ended trial to its rule, so that later ones are compared with it."""
        if (rule := self._rule(trial)) and (latest := self._latest.pop(trial.trial_id, None)):
            rule.on_trial_complete(tune_controller, trial, latest)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Makes its rule forget a trial that never ran."""
        if rule := self._rule(trial):
            rule.on_trial_remove(tune_controller, trial)

    def _rule(self, trial: Any) -> TrialScheduler | None:
        payload = _job(trial).payload
        if "stop" not in payload:
            return None
        title = str(payload["title"])
        if title not in self._rules:
            self._rules[title] = build_rule(StopSpec.model_validate(payload["stop"]))
        return self._rules[title]


def _sentence(job: Job, latest: dict[str, float]) -> str:
    stop = StopSpec.model_validate(job.payload["stop"])
    place = (
        f"not among the best 1 of {stop.reduction_factor}"
        if stop.rule == "asha"
        else "below the median"
    )
    return (
        f"stopped early after {100 * latest[SHARE]:.0f} % of its updates, since its validation "
        f"(goodness {latest[GOODNESS]:.2f}) was {place} of the runs `{job.payload['title']}`; "
        "without `stop_tuning` the same command goes on with it."
    )


def _job(trial: Any) -> Job:
    return Job.model_validate_json(trial.config["job"])
