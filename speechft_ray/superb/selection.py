"""Scores probes on a split and selects the best validation of a training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from speechft_ray.core.metrics import is_better
from speechft_ray.superb.extractor import Advance, Features, iterate_batches
from speechft_ray.superb.probe import Probe, Schedule, TrainedProbe
from speechft_ray.superb.tasks.base import TaskData

SCORED_AT_ONCE = 16
"""Utterances in one forward pass of scoring. Heads do not let padding reach valid frames, so the
number changes no prediction."""


class Best(NamedTuple):
    """The best validation so far. ``metrics`` is ``None`` where something else than a metric
    selected it; ``latest``: the metrics of the latest validation, then empty."""

    update: int
    quality: float
    metrics: dict[str, float] | None
    predictions: list[Any]
    state: dict[str, torch.Tensor]
    latest: Mapping[str, float]


def update_best(
    best: Best | None,
    update: int,
    data: TaskData,
    predictions: list[Any],
    metric: str,
    state: Callable[[], Mapping[str, torch.Tensor]],
) -> Best:
    """Returns the better one of the best validation so far and a new one with these
    ``predictions`` on dev; of two equals, the earlier one."""
    # Compare: by the task's own criterion if it has one, else by its first metric.
    if data.select is not None:
        metrics, quality = None, data.select(predictions, list_references(data, "dev"))
        improved = best is None or quality > best.quality
    else:
        metrics = compute_dev_metrics(data, predictions)
        quality = metrics[metric]
        improved = best is None or is_better(metric, quality, best.quality)
    if best is not None and not improved:
        return best._replace(latest=metrics or {})
    # Copy the parameters: training changes them in place.
    parameters = {name: value.detach().clone() for name, value in state().items()}
    return Best(update, quality, metrics, predictions, parameters, metrics or {})


def find_last_update(best: Best | None, schedule: Schedule) -> int:
    """Returns the update at which a training ends, or pauses, unless a validation until then is
    better."""
    if best is None or schedule.patience is None:
        return schedule.stop
    return min(schedule.stop, best.update + schedule.patience * schedule.validate_every_updates)


def pack_best(best: Best | None) -> dict[str, Any] | None:
    """Returns the best validation as tensors and plain data, to be saved (``SavedWork``)."""
    if best is None:
        return None
    predictions = [
        torch.from_numpy(item) if isinstance(item, np.ndarray) else item
        for item in best.predictions
    ]
    has_arrays = any(isinstance(item, np.ndarray) for item in best.predictions)
    return {**best._asdict(), "predictions": predictions, "has_arrays": has_arrays}


def unpack_best(packed: Mapping[str, Any] | None, device: torch.device) -> Best | None:
    """Returns the best validation that ``pack_best`` packed, its parameters on ``device``."""
    if packed is None:
        return None
    fields = dict(packed)
    if fields.pop("has_arrays"):
        fields["predictions"] = [item.numpy() for item in fields["predictions"]]
    fields["state"] = {name: value.to(device) for name, value in fields["state"].items()}
    return Best(**fields)


def make_trained_probe(
    best: Best, data: TaskData, schedule: Schedule, probe: Probe, skipped: int
) -> TrainedProbe:
    """Returns the outcome of a training; ``probe`` has the parameters of the best validation.
    ``skipped`` updates changed nothing."""
    metrics = best.metrics or compute_dev_metrics(data, best.predictions)
    return TrainedProbe(
        probe=probe.eval(),
        best_update=best.update,
        last_update=find_last_update(best, schedule),
        dev=metrics,
        dev_predictions=best.predictions,
        skipped=skipped,
    )


@torch.no_grad()
def predict(
    data: TaskData,
    probes: Sequence[Probe],
    features: Features,
    advance: Advance = lambda count: None,
) -> list[list[Any]]:
    """Returns the predictions of each probe on one split, whose features are read once for all of
    them."""
    predictions: list[list[Any]] = [[] for _ in probes]
    for batch in iterate_batches(features, SCORED_AT_ONCE):
        for probe, of_probe in zip(probes, predictions, strict=True):
            of_probe += data.predict(probe.eval()(batch), batch.frames)
        advance(len(batch.frames))
    return predictions


def list_references(data: TaskData, split: str) -> list[Any]:
    """Returns the references of a split, in the order of its examples."""
    return [example.reference for example in data.examples[split]]


def compute_dev_metrics(data: TaskData, predictions: Sequence[Any]) -> dict[str, float]:
    """Returns the metrics of dev, over the examples that are scored (``TaskData.dev_indices``)."""
    references = list_references(data, "dev")
    if data.dev_indices is not None:
        predictions = [predictions[index] for index in data.dev_indices]
        references = [references[index] for index in data.dev_indices]
    return data.measure(predictions, references)
