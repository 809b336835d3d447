"""Verifies predicted merges: once all predictions of a curve over alpha are in the store, the best
of them on dev are made and evaluated like any other merge."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from speechft_ray.core.store import Store
from speechft_ray.sweep.inputs import Inputs
from speechft_ray.sweep.plan import Plan, PlanBuilder, PlannedRow, merge_fingerprint
from speechft_ray.sweep.predictions import is_prediction, real_params
from speechft_ray.sweep.protocols import EncoderRow
from speechft_ray.sweep.rows import read_rows
from speechft_ray.sweep.titles import row_title


class PredictedCurve(NamedTuple):
    """The predictions of one curve: rows that differ in alpha and in the fine-tuning seed."""

    rows: Mapping[float, Sequence[PlannedRow]]
    """Rows of all seeds by alpha."""
    verify: int

    def count_verified(self) -> int:
        """Returns how many merges will be made, of all seeds together."""
        return self.verify * max(map(len, self.rows.values()))


def list_curves(plan: Plan) -> list[PredictedCurve]:
    """Returns the predictions of a plan by curve."""
    curves: dict[tuple[Any, ...], dict[float, list[PlannedRow]]] = {}
    for row in plan.rows:
        if is_prediction(row.params):
            others = tuple(
                (name, value) for name, value in row.params.items() if name not in ("alpha", "seed")
            )
            by_alpha = curves.setdefault(others, {})
            by_alpha.setdefault(float(row.params["alpha"]), []).append(row)
    return [
        PredictedCurve(by_alpha, min(_read_prediction(plan, rows[0])["verify"], len(by_alpha)))
        for by_alpha in curves.values()
        for rows in [next(iter(by_alpha.values()))]
    ]


def add_verified(plan: Plan, store: Store, inputs: Inputs) -> Plan:
    """Returns the plan with the merges that verify its curves, as far as they can be selected now;
    the plan itself where that is nothing. Its fingerprint stays.

    An alpha is selected by the mean of its predicted scores on dev over fine-tuning seeds, and is
    then made for each seed.
    """
    selected = list(_select_rows(plan, store))
    if not selected:
        return plan
    builder = PlanBuilder(inputs, plan.spec.stop_tuning)
    builder.jobs = dict(plan.jobs)
    rows = {row.key: row for row in plan.rows}
    for row in selected:
        predicted = _read_prediction(plan, row)
        params = real_params(row.params, row.params["alpha"])
        title = row_title(params)
        if merge_fingerprint(predicted["recipe"]) in rows:
            continue
        key = builder.add_recipe(predicted["recipe"], title)
        evaluations = tuple(
            builder.add_evaluation(item, key, title, predicted) for item in plan.spec.evaluate
        )
        rows[key] = PlannedRow(key=key, title=title, params=params, evaluations=evaluations)
    return replace(plan, jobs=builder.jobs, rows=tuple(rows.values()))


def count_unverified(plan: Plan) -> int:
    """Returns how many merges of a plan will be added to verify its curves."""
    made = {row.key for row in plan.rows}
    missing = 0
    for curve in list_curves(plan):
        rows = [row for of_alpha in curve.rows.values() for row in of_alpha]
        recipes = [_read_prediction(plan, row)["recipe"] for row in rows]
        verified = sum(merge_fingerprint(recipe) in made for recipe in recipes)
        missing += max(0, curve.count_verified() - verified)
    return missing


def _select_rows(plan: Plan, store: Store) -> Iterator[PlannedRow]:
    """Yields the predictions to be verified of every curve that is complete and scored."""
    curves = list_curves(plan)
    if not curves:
        return
    read: dict[str, EncoderRow] = {row.key: row for row in read_rows(plan, store)}
    for curve in curves:
        running = {
            alpha: [row for row in rows if read[row.key].stopped is None]
            for alpha, rows in curve.rows.items()
        }
        scores = {
            alpha: [read[row.key].dev.get("score") for row in rows]
            for alpha, rows in running.items()
            if rows
        }
        if any(score is None for of_alpha in scores.values() for score in of_alpha):
            continue
        means = {
            alpha: statistics.fmean(score for score in of_alpha if score is not None)
            for alpha, of_alpha in scores.items()
        }
        best = sorted(means, key=lambda alpha: (-means[alpha], alpha))[: curve.verify]
        for alpha in sorted(best):
            yield from running[alpha]


def _read_prediction(plan: Plan, row: PlannedRow) -> dict[str, Any]:
    """Returns what the jobs of a predicted row know of it (``Prediction.payload``)."""
    predicted: Any = plan.jobs[row.evaluations[0]].payload["predicted"]
    return dict(predicted)
