"""Reads the results of a sweep from the store: one row per merged encoder, and learning curves."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

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
    evaluations = [_read_scores(store, key) for key in plan.baseline]
    if not all(evaluations):
        return {}
    zero = {
        score.metric: score.mean
        for scores in evaluations
        for score in scores
        if score.split == split
    }
    return {
        name: (value, plan.spec.score.topline[name])
        for name, value in zero.items()
        if name in plan.spec.score.topline
    }


def read_rows(plan: Plan, store: Store) -> list[EncoderRow]:
    """Returns every row of the plan, in plan order, with the scores that are in the store."""
    by_split = {split: read_references(plan, store, split) for split in ("test", "dev")}
    stopped = read_stopped_jobs(plan, store)
    rows = [_read_row(planned, store, by_split) for planned in plan.rows]
    return [row if row.complete else replace(row, stopped=stopped.get(row.key)) for row in rows]


def read_curves(plan: Plan, store: Store) -> list[Curve]:
    """Returns the learning curves of the fine-tuning runs that are complete."""
    curves = []
    for job in plan.of_stage("finetune"):
        if store.is_complete("finetune", job.fingerprint):
            points = store.manifest("finetune", job.fingerprint).get("curve", [])
            spec = FinetuneSpec.model_validate(job.payload["spec"])
            curves.append(
                Curve(
                    key=job.fingerprint,
                    title=job.label,
                    params={"finetune": str(job.payload["title"]), "seed": spec.seed},
                    points=[(step, values) for step, values in points],
                )
            )
    return curves


def _read_row(planned: PlannedRow, store: Store, by_split: Mapping[str, References]) -> EncoderRow:
    evaluations = [_read_scores(store, key) for key in planned.evaluations]
    complete = all(evaluations)
    scores = [score for task_scores in evaluations for score in task_scores]
    test, dev = ([score for score in scores if score.split == split] for split in ("test", "dev"))
    return EncoderRow(
        key=planned.key,
        title=planned.title,
        params=planned.params,
        test=_compute_means(test, by_split["test"] if complete else {}),
        dev=_compute_means(dev, by_split["dev"] if complete else {}),
        spread=_compute_spreads(test, by_split["test"] if complete else {}),
        complete=complete,
    )


def _compute_means(scores: Sequence[Score], references: References) -> dict[str, float]:
    """Returns means over the probe seeds, and their score where there are references."""
    means = {score.metric: score.mean for score in scores}
    return {**means, "score": superb_score(means, references)} if references else means


def _compute_spreads(scores: Sequence[Score], references: References) -> dict[str, float]:
    """Returns sample standard deviations over the probe seeds, of metrics and of the score."""
    spreads = {
        score.metric: statistics.stdev(score.values) for score in scores if len(score.values) > 1
    }
    counts = {len(score.values) for score in scores}
    if references and len(counts) == 1 and min(counts) > 1:
        per_seed = [
            superb_score({score.metric: score.values[i] for score in scores}, references)
            for i in range(min(counts))
        ]
        spreads["score"] = statistics.stdev(per_seed)
    return spreads


def _read_scores(store: Store, key: str) -> list[Score]:
    return (
        read_scores(store.manifest("evaluate", key)) if store.is_complete("evaluate", key) else []
    )


def _metric_names(plan: Plan) -> list[str]:
    tasks = {item.task for item in plan.spec.evaluate}
    return [name for name, metric in METRICS.items() if metric.task in tasks]
