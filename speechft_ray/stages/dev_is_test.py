"""Finds metrics on whose test set the best merge is selected, since their task has no other dev set
in the published protocol."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from speechft_ray.core.metrics import metrics_of
from speechft_ray.core.specs import SweepSpec
from speechft_ray.superb.tasks.base import uses_test_as_dev
from speechft_ray.sweep.protocols import EncoderRow


def mark_dev_is_test(rows: Iterable[EncoderRow], spec: SweepSpec) -> list[EncoderRow]:
    """Returns the rows; ``dev_is_test`` is set where such a metric is a part of what selects."""
    names = _list_metrics(spec)
    return [replace(row, dev_is_test=names) if names else row for row in rows]


def _list_metrics(spec: SweepSpec) -> tuple[str, ...]:
    selecting = ["score"]
    if spec.search is not None:
        bounds = [constraint.metric for constraint in spec.search.constraints]
        selecting = [*spec.search.objectives, *bounds]
    return tuple(
        metric.name
        for entry in spec.evaluate
        if uses_test_as_dev(entry)
        for metric in metrics_of(entry.task, entry.name)
        if metric.name in selecting or (entry.in_score and "score" in selecting)
    )
