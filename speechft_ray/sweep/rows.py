"""Reads the results of a sweep from the store: one row per merged encoder, and learning curves."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from speechft_ray.core.metrics import label_evaluation, metric, metrics_of, name_metric
from speechft_ray.core.records import Score, read_scores
from speechft_ray.core.score import explain_unscored, paper_references, superb_score
from speechft_ray.core.store import Store
from speechft_ray.sweep.curves import describe_run, read_probe_points
from speechft_ray.sweep.fields import list_varying_params
from speechft_ray.sweep.layers import read_layer_weights, read_weight_distance
from speechft_ray.sweep.plan import Plan, PlannedRow
from speechft_ray.sweep.predictions import is_prediction
from speechft_ray.sweep.protocols import Curve, EncoderRow
from speechft_ray.sweep.stops import read_stopped_jobs

FEATURE_ERROR = "feature_error"
"""Beginning of the names of feature errors in ``EncoderRow.extra``."""

References = Mapping[str, tuple[float, float]]
"""Metric name to the values that count as 0 and as 1."""


class Scale(NamedTuple):
    """What the score is made of. It has the same metrics on both splits, so that dev selects by
    what test reports."""

    test: References
    dev: References
    unscored: Mapping[str, str]
    """Why a metric is not part of the score, one sentence by metric."""

    def of(self, split: str) -> References:
        """Returns the references on ``test`` or ``dev``; empty where no metric can be scored."""
        return self.test if split == "test" else self.dev


def read_scale(plan: Plan, store: Store) -> Scale | None:
    """Returns the scale of the score; ``None`` while a measured zero is not in the store yet.

    Raises ``UserError`` for a metric that the paper has no reference for.
    """
    names = _metric_names(plan)
    if not plan.baseline:
        references = paper_references(names)
        return Scale(references, references, {})
    if not all(store.is_complete("evaluate", key) for key in plan.baseline):
        return None
    one = plan.spec.score.topline
    by_split: dict[str, dict[str, tuple[float, float]]] = {
        split: {
            score.metric: (score.mean, one[score.metric])
            for item, key in zip(plan.spec.evaluate, plan.baseline, strict=True)
            for score in _read_scores(store, key, item.name)
            if score.split == split and score.metric in one
        }
        for split in ("test", "dev")
    }
    unscored: dict[str, str] = {}
    for name in names:
        for split, measured in by_split.items():
            if (reason := explain_unscored(name, measured.get(name), split)) is not None:
                unscored.setdefault(name, reason)
    test, dev = (
        {name: ends for name, ends in measured.items() if name not in unscored}
        for measured in by_split.values()
    )
    return Scale(test, dev, unscored)


def read_references(plan: Plan, store: Store, split: str = "test") -> References:
    """Returns the references of the score on one split, without metrics that cannot be scored;
    empty while a measured zero is not in the store yet.

    Raises ``UserError`` for a metric that the paper has no reference for.
    """
    scale = read_scale(plan, store)
    return {} if scale is None else scale.of(split)


def read_rows(plan: Plan, store: Store) -> list[EncoderRow]:
    """Returns every row of the plan, in plan order, with the scores that are in the store."""
    return list(iterate_rows(plan, store, {}))


def iterate_rows(
    plan: Plan, store: Store, complete: MutableMapping[str, EncoderRow]
) -> Iterator[EncoderRow]:
    """Yields every row of the plan, in plan order. ``complete``: complete rows by key, read with
    the scale of the plan; they are not read again, and new ones are added."""
    scale = read_scale(plan, store)
    stopped = read_stopped_jobs(plan, store)
    names = [item.name for item in plan.spec.evaluate]
    for planned in plan.rows:
        row = complete.get(planned.key) or read_row(planned, names, store, scale)
        if not row.complete:
            row = replace(row, stopped=stopped.get(row.key))
        elif scale is not None:
            complete[row.key] = row
        yield row


def read_curves(plan: Plan, store: Store) -> list[Curve]:
    """Returns the learning curves of the fine-tuning runs of a plan that are complete, under the
    names that values have in the store; what varies between runs of one name is among their
    params."""
    varying = list_varying_params(plan.jobs)
    curves = []
    for job in plan.of_stage("finetune"):
        if store.is_complete("finetune", job.fingerprint):
            points = store.manifest("finetune", job.fingerprint).get("curve", [])
            points = [(step, values) for step, values in points]
            run = describe_run(job)
            params = {**run.params, **varying[job.fingerprint]}
            curves.append(run._replace(params=params, points=points))
    return curves


def read_row(
    planned: PlannedRow, names: Sequence[str | None], store: Store, scale: Scale | None
) -> EncoderRow:
    """Returns one row with the scores that are in the store, and its score where it is complete and
    the scale is known. ``names``: those of the evaluations, in the order of the spec."""
    complete = all(store.is_complete("evaluate", key) for key in planned.evaluations)
    manifests = [
        (store.manifest("evaluate", key), name)
        for name, key in zip(names, planned.evaluations, strict=True)
        if store.is_complete("evaluate", key)
    ]
    scores = [score for manifest, name in manifests for score in _name_scores(manifest, name)]
    test, dev = ([score for score in scores if score.split == split] for split in ("test", "dev"))
    row = EncoderRow(
        key=planned.key,
        title=planned.title,
        params=planned.params,
        test={score.metric: score.mean for score in test},
        dev={score.metric: score.mean for score in dev},
        spread={
            score.metric: statistics.stdev(score.values)
            for score in test
            if len(score.values) > 1 and all(map(math.isfinite, score.values))
        },
        extra=dict(item for pair in manifests for item in _read_feature_errors(*pair)),
        complete=complete,
        curve=[point for pair in manifests for point in read_probe_points(*pair)],
        layer_weights=dict(
            item for pair in manifests for item in read_layer_weights(*pair).items()
        ),
        weight_distance=read_weight_distance(planned.key, store),
    )
    if not complete or scale is None:
        return row
    unscored = {**scale.unscored, **_explain_unscored_row(row, scale)}
    row = replace(row, unscored=tuple(unscored.values()))
    if len(unscored) > len(scale.unscored) or not scale.test:
        return row
    if is_prediction(row.params):  # of dev alone
        return replace(row, dev={**row.dev, "score": _score(row.dev, scale.dev)})
    return replace(
        row,
        test={**row.test, "score": _score(row.test, scale.test)},
        dev={**row.dev, "score": _score(row.dev, scale.dev)},
        spread={**row.spread, **_score_spread(test, scale.test)},
    )


def _read_feature_errors(manifest: Mapping[str, Any], name: str | None) -> list[tuple[str, float]]:
    """Returns how far the features of a verified merge were predicted wrongly, by task and layer
    (``superb.interpolation.measure_error``)."""
    errors = manifest.get("feature_error", [])
    label = label_evaluation(str(manifest["spec"]["task"]), name) if errors else ""
    return [(f"{FEATURE_ERROR}/{label}.layer_{layer}", one) for layer, one in enumerate(errors)]


def _explain_unscored_row(row: EncoderRow, scale: Scale) -> dict[str, str]:
    """Returns why one encoder has no score although others may have one, by metric."""
    unscored: dict[str, str] = {}
    splits = (("test", row.test), ("dev", row.dev))
    for split, values in splits[1:] if is_prediction(row.params) else splits:
        for name in scale.of(split):
            if not math.isfinite(values.get(name, math.nan)):
                state = "is not a finite number" if name in values else "was not measured"
                text = f"`{row.title}` has no score: its {metric(name).title} on {split} {state}."
                unscored.setdefault(name, text)
    return unscored


def _score(values: Mapping[str, float], references: References) -> float:
    return superb_score({name: values[name] for name in references}, references)


def _score_spread(scores: Sequence[Score], references: References) -> dict[str, float]:
    """Returns the sample standard deviation of the score over the probe seeds."""
    of_score = [score for score in scores if score.metric in references]
    counts = {len(score.values) for score in of_score}
    if len(counts) != 1 or min(counts) < 2:
        return {}
    per_seed = [
        superb_score({score.metric: score.values[i] for score in of_score}, references)
        for i in range(min(counts))
    ]
    return {"score": statistics.stdev(per_seed)}


def _read_scores(store: Store, key: str, name: str | None) -> list[Score]:
    """Returns the scores of an evaluation, under its name in this sweep."""
    if not store.is_complete("evaluate", key):
        return []
    return _name_scores(store.manifest("evaluate", key), name)


def _name_scores(manifest: Mapping[str, Any], name: str | None) -> list[Score]:
    return [
        score.model_copy(update={"metric": name_metric(score.metric, name)})
        for score in read_scores(manifest)
    ]


def _metric_names(plan: Plan) -> list[str]:
    """Returns the metrics of the evaluations that are in the score."""
    return [
        item.name
        for entry in plan.spec.evaluate
        if entry.in_score
        for item in metrics_of(entry.task, entry.name)
    ]
