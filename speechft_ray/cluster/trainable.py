"""The class of Tune's trials: each fine-tunes one encoder on its worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from ray import tune
from ray.tune.execution.class_cache import _ActorClassCache
from ray.tune.trainable.function_trainable import wrap_function

from speechft_ray.cluster.progress import perform_on_worker, throttle
from speechft_ray.cluster.share import bundle
from speechft_ray.cluster.stopping import GOODNESS, SHARE
from speechft_ray.core.curves import Point
from speechft_ray.core.records import Job, Place
from speechft_ray.core.resources import ResourceRequest
from speechft_ray.sweep.protocols import Perform, ReportProgress

CURVE_EVERY_SECONDS = 3.0
"""Seconds between reports of a trial to Tune. Each waits for the driver's answer, and a trial can
be stopped only then. The progress actor has finer progress."""


def make_trainable(perform: Perform, place: Place, progress_actor: Any) -> Any:
    """Returns the class of the trials. The dashboard shows each trial as one actor with the label
    of its job, and with ``hide_calls`` not the calls of Tune, one for each report."""

    def finetune(config: dict[str, Any]) -> None:
        job = Job.model_validate_json(config["job"])
        outcome = perform_on_worker(perform, job, place, progress_actor, curve=_curve(job))
        tune.report({"outcome": outcome.model_dump_json()})

    class Finetuning(wrap_function(finetune)):  # type: ignore[misc]
        def __repr__(self) -> str:
            return Job.model_validate_json(self.config["job"]).label

        @classmethod
        def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
            return _place(config)

    Finetuning.__qualname__ = Finetuning.__name__  # what the dashboard shows
    return Finetuning


@cache
def hide_calls() -> None:
    """Keeps the calls of Tune to its trials out of the dashboard. Tune has no option for that, so
    its actor classes get one of Ray (ray 2.60, ``tune/execution/class_cache.py``)."""
    get = _ActorClassCache.get

    def get_hidden(self: Any, trainable: Any) -> Any:
        actor_class = get(self, trainable)
        actor_class._default_options["enable_task_events"] = False
        return actor_class

    _ActorClassCache.get = get_hidden


def _curve(job: Job) -> ReportProgress:
    """Returns what sends curve values to Tune. Of a run that may be stopped, every validation is
    sent and answered."""
    send = throttle(_report_latest, CURVE_EVERY_SECONDS)
    if "stop" not in job.payload:
        return send

    def report(values: Mapping[str, float]) -> None:
        if GOODNESS in values:
            tune.report({SHARE: values["done"] / values["total"], GOODNESS: values[GOODNESS]})
        else:
            send(values)

    return report


def _report_latest(latest: Mapping[str, float], points: Sequence[Point]) -> None:
    # The prefix keeps clear of Tune's own result names: a `done` that is not 0 ends the trial. Tune
    # takes `/` in a name for levels of a mapping.
    if latest:
        tune.report({f"job_{name.replace('/', '_')}": value for name, value in latest.items()})


def _place(config: dict[str, Any]) -> tune.PlacementGroupFactory:
    share = _share(config)
    labels = {**share.labels, **config["avoid"]}
    selector = {"bundle_label_selector": [labels]} if labels else {}
    return tune.PlacementGroupFactory([bundle(share)], **selector)


def _share(config: dict[str, Any]) -> ResourceRequest:
    return ResourceRequest.model_validate(
        {name: config[name] for name in ResourceRequest.model_fields}
    )
