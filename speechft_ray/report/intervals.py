"""Reads the counts of a sweep, and computes intervals of its numbers and of differences from
them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from pydantic import TypeAdapter, ValidationError

from speechft_ray.core.counts import COUNTS_FILE, UtteranceCounts
from speechft_ray.core.metrics import METRICS, name_metric
from speechft_ray.core.score import Reference
from speechft_ray.core.store import Store
from speechft_ray.report.effects import (
    Effects,
    TestSets,
    add_metrics,
    compute_effects,
    list_metrics,
    weigh_metrics,
)
from speechft_ray.report.uncertainty import Estimate, Part, estimate
from speechft_ray.sweep.plan import Plan
from speechft_ray.sweep.predictions import is_prediction

Interval = tuple[float, float]

_LIST = TypeAdapter(list[UtteranceCounts])


def read_counts(plan: Plan, store: Store) -> dict[str, TestSets]:
    """Returns the counts on test of all complete rows by merged encoder; counts that cannot be read
    are left out, and predictions, which have dev alone."""
    complete = [
        row
        for row in plan.rows
        if not is_prediction(row.params)
        and all(store.is_complete("evaluate", key) for key in row.evaluations)
    ]
    names = [item.name for item in plan.spec.evaluate]
    return {
        row.key: [
            read_evaluation_counts(store, key, name)
            for name, key in zip(names, row.evaluations, strict=True)
        ]
        for row in complete
    }


def compute_intervals(
    encoders: Sequence[TestSets], references: Mapping[str, Reference]
) -> dict[str, Interval]:
    """Returns 95 % intervals of test metrics and of the ``score`` over other test speakers, for the
    mean over encoders and probe seeds.

    A metric is missing without counts, and the score where any metric of ``references`` is.
    """
    evaluations = _list_evaluations(encoders)
    intervals: dict[str, Interval] = {}
    parts: list[Effects] = []
    weights, weighed = _weigh(references), set[str]()
    for tests in evaluations:
        metrics = {
            name: effects
            for name in list_metrics(tests)
            if (effects := compute_effects(tests, name)) is not None
        }
        for name, effects in metrics.items():
            ends = _to_interval(estimate(_make_parts([_average(effects)]), shared_probes=False))
            intervals[name] = _clip(name, ends)
        scored = {name: effects for name, effects in metrics.items() if name in weights}
        if scored:
            parts.append(_average(add_metrics(scored, weights)))
            weighed |= set(scored)
    if parts and weighed == set(weights):
        low, high = _to_interval(estimate(_make_parts(parts), shared_probes=False))
        zero = sum(weight * references[name][0] for name, weight in weights.items())
        intervals["score"] = low - zero, high - zero
    return intervals


def estimate_difference(
    first: Sequence[TestSets], second: Sequence[TestSets], references: Mapping[str, Reference]
) -> Estimate | None:
    """Estimates the difference of two lines in score: ``first`` less ``second``.

    Encoders of one place are a pair, with the same fine-tuning seed; ``second`` may be one encoder
    that all are compared with. Probes are paired by their seed. ``None`` where counts lack.
    """
    weights, weighed = _weigh(references), set[str]()
    parts: list[Effects] = []
    for tests in _list_evaluations([*first, *second]):
        scored = {
            name: effects
            for name in list_metrics(tests)
            if name in weights and (effects := compute_effects(tests, name)) is not None
        }
        if scored:
            parts.append(_subtract(add_metrics(scored, weights), len(first)))
            weighed |= set(scored)
    if not parts or weighed != set(weights):
        return None
    return estimate(_make_parts(parts), shared_probes=len(second) < len(first))


def read_evaluation_counts(store: Store, key: str, name: str | None) -> list[UtteranceCounts]:
    """Returns the counts of one evaluation under its name in this sweep; none where there are none
    that can be read."""
    try:
        sets = _LIST.validate_json((store.folder("evaluate", key) / COUNTS_FILE).read_bytes())
    except (OSError, ValidationError):  # an evaluation without counts, or of an older version
        return []
    return [_name_metrics(counts, name) for counts in sets]


def _name_metrics(counts: UtteranceCounts, name: str | None) -> UtteranceCounts:
    """Returns the counts under the name of their evaluation in this sweep."""
    if name is None:
        return counts
    return counts.model_copy(
        update={
            field: {name_metric(metric, name): values for metric, values in own.items()}
            for field, own in (("amounts", counts.amounts), ("of", counts.of))
        }
    )


def _list_evaluations(encoders: Sequence[TestSets]) -> list[list[Sequence[UtteranceCounts]]]:
    """Returns the test sets of all encoders by evaluation."""
    count = min((len(tests) for tests in encoders), default=0)
    return [[tests[place] for tests in encoders] for place in range(count)]


def _weigh(references: Mapping[str, Reference]) -> dict[str, float]:
    return weigh_metrics(references) if references else {}


def _average(effects: Effects) -> Effects:
    """Returns the mean over encoders and probes, as one encoder and one probe."""
    return replace(
        effects,
        values=effects.values.mean((0, 1), keepdims=True),
        effects=effects.effects.mean((0, 1), keepdims=True),
    )


def _subtract(effects: Effects, count: int) -> Effects:
    """Returns the first ``count`` encoders less the others."""
    return replace(
        effects,
        values=effects.values[:count] - effects.values[count:],
        effects=effects.effects[:count] - effects.effects[count:],
    )


def _make_parts(evaluations: Sequence[Effects]) -> list[Part]:
    """Returns the parts of an estimate; speakers of one identity are one in all of them."""
    if len(evaluations) == 1:
        (only,) = evaluations
        return [Part(only.values, only.effects, only.degrees)]
    _, places = np.unique(
        np.concatenate([each.speakers for each in evaluations]), return_inverse=True
    )
    ends = np.cumsum([len(each.speakers) for each in evaluations])[:-1]
    return [
        Part(each.values, each.effects, each.degrees, own)
        for each, own in zip(evaluations, np.split(places, ends), strict=True)
    ]


def _to_interval(result: Estimate) -> Interval:
    low, high = result.interval()
    return float(low), float(high)


def _clip(name: str, ends: Interval) -> Interval:
    """Returns the interval within what a percentage can be: an error rate has no upper bound."""
    low, high = ends
    is_share = name in METRICS and METRICS[name].higher_is_better
    return max(0.0, low), min(100.0, high) if is_share else high
