"""Learning curves under their names in trackers: those of the store, and those of running jobs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from speechft_ray.core.curves import (
    Point,
    name_evaluation,
    name_finetune_values,
    name_probe_values,
)
from speechft_ray.core.records import Job
from speechft_ray.core.specs import EvalSpec, FinetuneSpec
from speechft_ray.core.store import Store
from speechft_ray.sweep.plan import PlannedRow
from speechft_ray.sweep.protocols import Curve

LIVE_SECONDS = 5.0
"""Shortest time between two batches of points of one run."""


def describe_run(job: Job) -> Curve:
    """Returns the curve of a fine-tuning job, without points."""
    spec = FinetuneSpec.model_validate(job.payload["spec"])
    params: dict[str, str | float | int] = {
        "finetune": str(job.payload["title"]),
        "seed": spec.seed,
    }
    return Curve(job.fingerprint, job.label, params, [])


def describe_encoder(row: PlannedRow) -> Curve:
    """Returns the curve of the probes of an encoder, without points."""
    return Curve(row.key, row.title, row.params, [], kind="encoder", state="running")


def read_run_curve(job: Job, store: Store) -> Curve:
    """Returns the curve of a fine-tuning job that is complete, as trackers name its values."""
    manifest = store.manifest("finetune", job.fingerprint)
    spec = FinetuneSpec.model_validate(job.payload["spec"])
    heads = [objective.head for objective in spec.objectives]
    metric = str(manifest.get("metric", "metric"))
    metrics = [
        str(item.get("metric", metric)) for item in manifest.get("objectives", [{}] * len(heads))
    ]
    points = [
        (step, name_finetune_values(values, heads, metrics, metric))
        for step, values in manifest.get("curve", [])
    ]
    return describe_run(job)._replace(points=points)


def read_probe_points(
    manifest: Mapping[str, Any], name: str | None
) -> list[tuple[int, dict[str, float]]]:
    """Returns the points of an evaluation in the store, as trackers name their values; ``name``:
    that of the evaluation in this sweep."""
    if "curve" not in manifest:
        return []
    task = str(manifest["spec"]["task"])
    return [
        (update, name_evaluation(name_probe_values(values), task, name))
        for update, values in manifest["curve"]
    ]


def name_probe_points(
    row: PlannedRow, evaluations: Sequence[EvalSpec], key: str, points: Iterable[Point]
) -> list[Point]:
    """Returns points that an evaluation of a row reported, with the name of that evaluation."""
    item = evaluations[row.evaluations.index(key)]
    return [(update, name_evaluation(values, item.task, item.name)) for update, values in points]


class LiveCurves:
    """Collects points by run. A run has its first batch at once, and then at most one every
    ``LIVE_SECONDS``."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock`` returns seconds from any fixed moment."""
        self._clock = clock
        self._waiting: dict[str, tuple[Curve, list[Point]]] = {}
        self._taken_at: dict[str, float] = {}
        self._ended: set[str] = set()

    def add(self, run: Curve, points: Iterable[Point]) -> None:
        """Adds new points of a run; ``run`` says which, its own points do not count. Those of a run
        that has ended are late: they would open it again."""
        if run.key in self._ended:
            return
        _, waiting = self._waiting.setdefault(run.key, (run, []))
        waiting.extend(points)

    def take_due(self) -> Iterator[Curve]:
        """Yields the runs with new points whose time has come, with these points."""
        now = self._clock()
        for key, (run, points) in list(self._waiting.items()):
            if now - self._taken_at.get(key, float("-inf")) >= LIVE_SECONDS:
                del self._waiting[key]
                self._taken_at[key] = now
                yield run._replace(points=points)

    def end(self, key: str) -> None:
        """Forgets a run, for good: its points are in the store."""
        self._ended.add(key)
        self._waiting.pop(key, None)
        self._taken_at.pop(key, None)
