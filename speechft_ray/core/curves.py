"""Points of learning curves: how a running job reports them, and their names in trackers.

Names are grouped by ``/``, since trackers make one section of charts of each group: ``train/loss``,
``dev/<metric>``, ``distance/layer_03``, ``probe/loss_<task>``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from speechft_ray.core.metrics import label_evaluation, name_metric

POINT = "update"
"""A report with this value is a point of the learning curve at that update; one without it tells
progress alone."""

NOT_IN_CURVE = ("done", "total", POINT, "goodness")
"""Values of a report that are no values of a curve."""

Point = tuple[int, dict[str, float]]
"""An update and the values there."""

PROBE_DEV = "probe/dev_"
"""Beginning of the names of dev metrics of probes."""
PROBE_LOSS = "probe/loss_"
"""Beginning of the names of losses of probes; the evaluation follows."""
_TRAIN_NAMES = {"learning_rate": "lr", "gradient_norm": "grad_norm"}


def read_point(report: Mapping[str, float]) -> Point | None:
    """Returns the point of a learning curve that a report is, or ``None``."""
    if POINT not in report:
        return None
    values = {name: float(value) for name, value in report.items() if name not in NOT_IN_CURVE}
    return int(report[POINT]), values


def name_objectives(heads: Sequence[str]) -> list[str]:
    """Returns a name for each objective of a run: its head, with its number where several have
    one."""
    return [
        f"{head}_{index}" if heads.count(head) > 1 else head for index, head in enumerate(heads)
    ]


def name_finetune_values(
    values: Mapping[str, float], heads: Sequence[str], metrics: Sequence[str], metric: str
) -> dict[str, float]:
    """Returns the values of a point of a fine-tuning run under their names in trackers.

    ``heads`` and ``metrics``: those of the objectives, in order; ``metric``: that of ``dev``, their
    mean.
    """
    objectives = name_objectives(heads)
    names = {"dev": f"dev/{metric}"}
    for index, (objective, name) in enumerate(zip(objectives, metrics, strict=True)):
        names[f"loss_{index}"] = f"train/loss_{objective}"
        names[f"dev_{index}"] = f"dev/{name}_{objective}"
    return {names.get(name) or _name_train_value(name): value for name, value in values.items()}


def name_probe_values(values: Mapping[str, float]) -> dict[str, float]:
    """Returns the values of a point of a probe, ``loss`` and dev metrics by metric name, under
    their names in trackers: ``probe/loss`` and ``probe/dev_<metric>``."""
    return {
        "probe/loss" if name == "loss" else f"{PROBE_DEV}{name}": value
        for name, value in values.items()
    }


def name_evaluation(values: Mapping[str, float], task: str, name: str | None) -> dict[str, float]:
    """Returns named values of a probe with the evaluation that they are of, since all those of an
    encoder are logged together: ``probe/loss_<task>``."""
    loss = f"{PROBE_LOSS}{label_evaluation(task, name)}"
    return {
        loss if key == "probe/loss" else name_metric(key, name): value
        for key, value in values.items()
    }


def shorten_name(name: str) -> str:
    """Returns the name of a value where there is little space: ``loss``, ``dev``, ``accuracy``."""
    last = name.rsplit("/", 1)[-1]
    return "dev" if name.startswith("dev/") or last.startswith("dev_") else last


def _name_train_value(name: str) -> str:
    group, _, part = name.partition("_")
    if group == "distance" and part:
        return f"distance/{part}"
    return f"train/{_TRAIN_NAMES.get(name, name)}"
