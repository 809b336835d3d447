"""The table's content, read from the store alone: one row per merged encoder, with scores, and the
learning curves."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from speechft_ray.core.metrics import METRICS
from speechft_ray.core.records import Score, read_scores
from speechft_ray.core.score import paper_references, superb_score
from speechft_ray.core.specs import FinetuneSpec
from speechft_ray.core.store import Store
from speechft_ray.sweep.plan import Plan, PlannedRow
from speechft_ray.sweep.protocols import Curve, EncoderRow
from speechft_ray.sweep.stops import read_stopped_jobs

References = Mapping[str, tuple[float, float]]
"""Metric name to the values that count as 0 and as 1."""


def read_references(plan: Plan, store: Store, split: str = "test") -> References:
    """Returns the references of the score on one split; empty while a measured zero is not in the
    store yet.

    Raises ``UserError`` for a metric that the paper has no reference for.
    """
    if not plan.baseline:
        return paper_references(_metric_names(plan))
    found = [_read_scores(store, key) for key in plan.baseline]
    if any(not scores for scores in found):
        return {}
    zero = {
        score.metric: score.mean for scores in found for score in scores if score.split == split
    }
    return {
        name: (value, plan.spec.score.topline[name])
        for name, value in zero.items()
        if name in plan.spec.score.topline
    }


def read_rows(plan: Plan, store: Store) -> list[EncoderRow]:
    """Returns every row of the plan, in plan order, with what is in the store by now."""
    by_split = {split: read_references(plan, store, split) for split in ("test", "dev")}
    stopped = read_stopped_jobs(plan, store)
    found = [_read_row(planned, store, by_split) for planned in plan.rows]
    return [row if row.complete else row._replace(stopped=stopped.get(row.key)) for row in found]


def read_curves(plan: Plan, store: Store) -> list[Curve]:
    """Returns the learning curves of the fine-tuning runs that are complete."""
    found = []
    for job in plan.of_stage("finetune"):
        if store.is_complete("finetune", job.fingerprint):
            points = store.manifest("finetune", job.fingerprint).get("curve", [])
            spec = FinetuneSpec.model_validate(job.payload["spec"])
            params: dict[str, str | float | int] = {
                "finetune": str(job.payload["title"]),
                "seed": spec.seed,
            }
            found.append(
                Curve(
                    job.fingerprint, job.label, params, [(step, values) for step, values in points]
                )
            )
    return found


def _read_row(planned: PlannedRow, store: Store, by_split: Mapping[str, References]) -> EncoderRow:
    found = [_read_scores(store, key) for key in planned.evaluations]
    complete = all(found)
    metrics: dict[str, float] = {}
    for split, prefix in (("test", ""), ("dev", "dev.")):
        scores = [score for scores in found for score in scores if score.split == split]
        metrics |= {prefix + score.metric: score.mean for score in scores}
        if complete and by_split[split]:
            metrics[f"{prefix}score"] = superb_score(
                {score.metric: score.mean for score in scores}, by_split[split]
            )
        if split == "test":
            metrics |= _spreads(scores, by_split[split] if complete else {})
    return EncoderRow(planned.key, planned.title, planned.params, metrics, complete)


def _spreads(scores: Sequence[Score], known: References) -> dict[str, float]:
    """Sample standard deviations over the probe seeds, per metric and of the score itself."""
    found = {
        f"spread.{score.metric}": statistics.stdev(score.values)
        for score in scores
        if len(score.values) > 1
    }
    counts = {len(score.values) for score in scores}
    if known and len(counts) == 1 and min(counts) > 1:
        per_seed = [
            superb_score({score.metric: score.values[i] for score in scores}, known)
            for i in range(min(counts))
        ]
        found["spread.score"] = statistics.stdev(per_seed)
    return found


def _read_scores(store: Store, key: str) -> list[Score]:
    return (
        read_scores(store.manifest("evaluate", key)) if store.is_complete("evaluate", key) else []
    )


def _metric_names(plan: Plan) -> list[str]:
    tasks = {item.task for item in plan.spec.evaluate}
    return [name for name, metric in METRICS.items() if metric.task in tasks]
