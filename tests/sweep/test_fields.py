"""What trackers log of each run: its resolved spec with every field, and scores by alpha."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from speechft_ray.core.specs import FinetuneSpec
from speechft_ray.sweep.fields import (
    list_merge_fields,
    list_sweep_fields,
    list_tuning_fields,
    list_varying_params,
)
from speechft_ray.sweep.plan import Plan, make_plan
from speechft_ray.sweep.protocols import EncoderRow
from speechft_ray.sweep.run_facts import RunFacts
from speechft_ray.sweep.series import list_alpha_series
from tests.sweep.fakes import inputs, space, sweep


def make_lambda_plan() -> Plan:
    (run,) = space()["finetune"]
    return make_plan(sweep(finetune=[{**run, "anchor_penalty": {"grid": [0, 0.01]}}]), inputs())


def leaves(value: Any, path: str) -> dict[str, Any]:
    """All leaves of nested data, where a list without mappings is a leaf: by hand, not by the code
    that is tested."""
    if isinstance(value, dict) and value:
        parts = [leaves(item, f"{path}.{name}") for name, item in value.items()]
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        parts = [leaves(item, f"{path}.{index}") for index, item in enumerate(value)]
    else:
        return {path: value}
    return {name: leaf for part in parts for name, leaf in part.items()}


def parse(fields: Mapping[str, str], expected: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: text if isinstance(expected.get(name), str) else json.loads(text)
        for name, text in fields.items()
    }


def test_the_params_of_a_training_run_are_its_whole_resolved_spec() -> None:
    plan = make_lambda_plan()
    for job in plan.of_stage("finetune"):
        spec = FinetuneSpec.model_validate(job.payload["spec"])
        expected = leaves(json.loads(spec.model_dump_json()), "finetune")
        assert len(expected) > 20
        assert parse(list_tuning_fields(job, plan.jobs), expected) == expected


def test_the_params_of_a_merge_are_its_spec_and_that_of_its_run() -> None:
    plan = make_lambda_plan()
    for row in plan.rows[1:]:
        recipe: Any = plan.jobs[row.key].payload
        fields = list_merge_fields(recipe, plan.jobs)
        assert fields["merge.alpha"] == json.dumps(row.params["alpha"])
        assert fields["merge.method"] == row.params["method"]
        assert fields["merge.checkpoint"] == "best" and fields["merge.donors"] == "narrow"
        (donor,) = recipe["donors"]
        tuning = list_tuning_fields(plan.jobs[donor], plan.jobs)
        assert {name: fields[name] for name in tuning} == tuning
        assert float(fields["finetune.anchor_penalty"]) == row.params["anchor_penalty"]


def test_what_differs_between_the_runs_of_one_merge_is_joined() -> None:
    (run,) = space(name="two")["finetune"]
    two = [{**run, "seed": 0}, {**run, "name": "wide", "updates": 20, "seed": 0}]
    merge = [{"method": "ties", "alpha": 0.5, "donors": ["narrow", "wide"], "params": {}}]
    plan = make_plan(sweep(finetune=two, merge=merge), inputs())
    recipe: Any = plan.jobs[plan.rows[1].key].payload
    fields = list_merge_fields(recipe, plan.jobs)
    assert fields["finetune.updates"] == "10+20" and fields["finetune.name"] == "narrow+wide"
    assert fields["finetune.seed"] == "0" and fields["merge.donors"] == "narrow+wide"


def test_a_sweep_has_what_all_of_its_runs_share() -> None:
    plan = make_lambda_plan()
    fields = list_sweep_fields(plan)
    assert fields["encoder"] == plan.spec.encoder and fields["score.zero"] == "measured"
    for item in plan.spec.evaluate:
        assert fields[f"evaluate.{item.task}.updates"] == "5"
        assert fields[f"evaluate.{item.task}.precision"] == "float32"  # a default
    assert not any(name.startswith("resources") for name in fields)


def test_lambda_is_a_param_of_every_training_run_where_it_varies(tmp_path: Any) -> None:
    from speechft_ray.core.store import Store
    from speechft_ray.sweep.protocols import Curve

    plan = make_lambda_plan()
    facts = RunFacts(plan, (), Store(tmp_path))
    jobs = plan.of_stage("finetune")
    curves = [
        facts.complete_curve(
            Curve(job.fingerprint, job.label, {"finetune": "narrow", "seed": 0}, [])
        )
        for job in jobs
    ]
    assert sorted(float(curve.params["anchor_penalty"]) for curve in curves) == [0, 0, 0.01, 0.01]


def test_scores_by_alpha_are_means_over_seeds_alone() -> None:
    def row(alpha: float, score: float, seed: int, penalty: float, method: str) -> EncoderRow:
        params: dict[str, str | float | int] = {"method": method, "alpha": alpha}
        params |= {"finetune": "narrow", "anchor_penalty": penalty, "seed": seed}
        return EncoderRow(key="k", title="", params=params, test={"score": score}, complete=True)

    pretrained = EncoderRow(
        key="p",
        title="",
        params={"alpha": 0.0, "method": "none", "finetune": "none"},
        test={"score": 500.0},
        complete=True,
    )
    rows = [
        pretrained,
        row(0.25, 600.0, 0, 0.0, "linear"),
        row(0.25, 620.0, 1, 0.0, "linear"),
        row(0.25, 700.0, 0, 0.01, "linear"),
        row(1.0, 400.0, 0, 0.01, "linear"),
        row(0.25, 100.0, 0, 0.0, "ties"),
        row(1.0, 300.0, 0, 0.5, "linear"),  # never merged: a point, not a line from alpha 0
    ]
    assert list_alpha_series(rows) == {
        "linear narrow lambda 0": [(0.0, 500.0), (0.25, 610.0)],
        "linear narrow lambda 0.01": [(0.0, 500.0), (0.25, 700.0), (1.0, 400.0)],
        "ties narrow lambda 0": [(0.0, 500.0), (0.25, 100.0)],
        "linear narrow lambda 0.5": [(1.0, 300.0)],
    }


def test_runs_that_differ_have_different_params() -> None:
    """Two donors with a penalty each, and two objectives with a weight each: no value takes the
    place of another."""
    (run,) = space()["finetune"]
    penalties = [
        {**run, "name": name, "seed": 0, "anchor_penalty": {"grid": [0, value]}}
        for name, value in (("narrow", 0.1), ("wide", 0.01))
    ]
    merge = [{"method": "ties", "alpha": 0.5, "donors": ["narrow", "wide"], "params": {}}]
    plan = make_plan(sweep(finetune=penalties, merge=merge), inputs())
    merged = [row.params for row in plan.rows if row.params["method"] == "ties"]
    assert {params["anchor_penalty"] for params in merged} == {0, "0+0.01", "0.1+0", "0.1+0.01"}
    (objective,) = run["objectives"]
    weights = [{**objective, "weight": {"grid": [1, value]}} for value in (2, 3)]
    plan = make_plan(sweep(finetune=[{**run, "seed": 0, "objectives": weights}]), inputs())
    rows = [row.params for row in plan.rows if row.params["alpha"] == 1]
    pairs = {(1, 1), (1, 3), (2, 1), (2, 3)}
    assert {(params["weight_0"], params["weight_1"]) for params in rows} == pairs
    curves = list_varying_params(plan.jobs).values()
    assert {(params["weight_0"], params["weight_1"]) for params in curves} == pairs
