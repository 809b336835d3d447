"""Plans: the units, their needs, and what their identity depends on."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from speechft_ray.core.errors import UserError
from speechft_ray.sweep.inputs import Component, Inputs
from speechft_ray.sweep.plan import Plan, make_plan
from tests.sweep.fakes import inputs, space, sweep

PINNED_FINETUNE = ["0b1b4d15f10d7c32", "0d46616a596a3e05"]
PINNED_MERGE = "9a4d04f6a3b0e05a"
PINNED_SWEEP = "93d2c9ac9b193c2d"


def test_counts_controls_and_baseline() -> None:
    plan = make_plan(sweep(), inputs())
    # 2 seeds x alphas (0.25, 0.5, and the control 1) + one alpha 0 = 7 encoders, x 2 tasks, + FBank
    # on 2 tasks
    assert Counter(job.stage for job in plan.jobs.values()) == {
        "corpus": 3,
        "finetune": 2,
        "merge": 7,
        "evaluate": 16,
    }
    assert [row.params["alpha"] for row in plan.rows].count(0.0) == 1
    assert [row.params["alpha"] for row in plan.rows].count(1.0) == 2
    assert len(plan.baseline) == 2


def test_needs_come_first_and_exist() -> None:
    plan = make_plan(sweep(), inputs())
    seen: set[str] = set()
    for key, job in plan.jobs.items():
        assert set(job.needs) <= seen, f"{job.label} comes before what it needs"
        assert key == job.fingerprint
        seen.add(key)


def test_alpha_zero_needs_no_tuning() -> None:
    plan = make_plan(sweep(), inputs())
    pretrained = next(row for row in plan.rows if row.params["alpha"] == 0)
    assert plan.jobs[pretrained.key].needs == ()


def test_names_and_order_are_not_identity() -> None:
    one, other = space(), space(name="renamed")
    other["finetune"][0]["name"] = "something-else"
    other["evaluate"].reverse()
    plans = [make_plan(sweep(**raw), inputs()) for raw in (one, other)]
    assert set(plans[0].jobs) == set(plans[1].jobs)
    assert plans[0].fingerprint == plans[1].fingerprint


@pytest.mark.parametrize(
    ("section", "field", "value", "changed"),
    [
        ("finetune", "updates", 11, {"finetune", "merge", "evaluate"}),
        ("finetune", "head_only_fraction", 0.2, {"finetune", "merge", "evaluate"}),
        ("merge", "method", "ties", {"merge", "evaluate"}),
        ("evaluate", "updates", 6, {"evaluate"}),
    ],
)
def test_a_change_reaches_exactly_what_follows(
    section: str, field: str, value: object, changed: set[str]
) -> None:
    before, raw = make_plan(sweep(), inputs()), space()
    raw[section][0][field] = value
    after = make_plan(sweep(**raw), inputs())
    fresh = {job.stage for key, job in after.jobs.items() if key not in before.jobs}
    assert fresh == changed


def test_another_encoder_is_another_sweep() -> None:
    before = make_plan(sweep(), inputs())
    after = make_plan(sweep(), Inputs(encoder="encoder-1", corpus=inputs().corpus))
    shared = set(before.jobs) & set(after.jobs)
    assert {before.jobs[key].stage for key in shared} == {
        "corpus",
        "evaluate",
    }  # the FBank baseline does not depend on it
    assert all(
        before.jobs[key].payload["encoder"] is None
        for key in shared
        if before.jobs[key].stage == "evaluate"
    )


def test_fingerprints_are_pinned() -> None:
    """Literal identities: a change voids the results of every store. Raise a version instead."""
    plan = make_plan(sweep(), inputs())
    assert [job.fingerprint for job in plan.of_stage("finetune")] == PINNED_FINETUNE
    assert plan.of_stage("merge")[0].fingerprint == PINNED_MERGE
    assert plan.fingerprint == PINNED_SWEEP


def compare_versions(component: str, name: str) -> tuple[Plan, Plan, set[str]]:
    """Returns plans without and with version 2 of a component, and the labels of changed jobs."""

    def version_of(kind: Component, other: str) -> int:
        return 2 if (kind, other) == (component, name) else 1

    raw = space(merge=[{"alpha": 0.5}, {"alpha": 0.5, "method": "ties"}])
    before = make_plan(sweep(**raw), inputs())
    after = make_plan(sweep(**raw), replace(inputs(), version_of=version_of))
    assert len(before.jobs) == len(after.jobs)
    changed = {job.label for key, job in after.jobs.items() if key not in before.jobs}
    assert changed == {job.label for key, job in before.jobs.items() if key not in after.jobs}
    return before, after, changed


def test_version_1_of_everything_adds_nothing() -> None:
    before, after, changed = compare_versions("task", "none of the sweep")
    assert not changed and before.fingerprint == after.fingerprint


def test_another_version_of_a_task_changes_its_evaluations_alone() -> None:
    before, _, changed = compare_versions("task", "sid")
    assert changed == {
        job.label for job in before.of_stage("evaluate") if job.label.startswith("evaluate sid ")
    }


def test_another_version_of_a_method_changes_its_merges_and_what_follows() -> None:
    before, after, changed = compare_versions("method", "ties")
    merges = {job.label for job in before.of_stage("merge") if job.payload["method"] == "ties"}
    rows = {row.title for row in before.rows if row.params["method"] == "ties"}
    assert merges == {f"merge {title}" for title in rows}
    assert changed == merges | {
        job.label for job in before.of_stage("evaluate") if job.label.split(" ", 2)[2] in rows
    }
    versions = {job.payload.get("method_version") for job in after.of_stage("merge")}
    assert versions == {None, 2}


def test_another_version_of_a_head_changes_its_fine_tuning_and_what_follows() -> None:
    before, _, changed = compare_versions("head", "frame")
    kept = {"corpus": 3, "merge": 1, "evaluate": 4}  # the pre-trained encoder and FBank stay
    stages = Counter(job.stage for job in before.jobs.values() if job.label not in changed)
    assert stages == kept


def test_another_version_of_a_component_of_a_chain_reaches_its_later_stages() -> None:
    raw = space()
    raw["finetune"][0]["seed"] = 0
    after = {"finetune": "narrow", "method": "ties", "alpha": 0.5}
    raw["finetune"].append({**raw["finetune"][0], "name": "later", "after": after})

    def version_of(component: Component, name: str) -> int:
        return 2 if (component, name) == ("method", "ties") else 1

    before = make_plan(sweep(**raw), inputs())
    changed = make_plan(sweep(**raw), replace(inputs(), version_of=version_of))
    titles = {
        job.payload["title"]
        for job in changed.of_stage("finetune")
        if job.fingerprint not in before.jobs
    }
    assert titles == {"narrow>later"}


def test_merges_of_runs_that_train_the_mask_embedding_have_an_identity_of_their_own() -> None:
    """Their mask embedding was the base's once; nothing else of a plan changes."""
    before = make_plan(sweep(), inputs())
    heads = {objective.head for run in sweep().finetune for objective in run.objectives}
    masking = replace(inputs(), masks=lambda head: head in heads)
    after = make_plan(sweep(), masking)
    for stage in ("corpus", "finetune"):
        assert before.of_stage(stage) == after.of_stage(stage)
    merges, others = (
        {job.fingerprint for job in plan.of_stage("merge")} for plan in (before, after)
    )
    pretrained = before.rows[0].key
    assert merges & others == {pretrained}
    assert all(
        job.payload.get("mask_embedding") == "merged"
        for job in after.of_stage("merge")
        if job.fingerprint != pretrained
    )
    adapted = sweep(finetune=[{**run, "adapter": {"kind": "lora"}} for run in space()["finetune"]])
    assert make_plan(adapted, inputs()).fingerprint == make_plan(adapted, masking).fingerprint


def test_donors_are_matched_by_seed() -> None:
    raw = space(merge=[{"donors": ["narrow", "wide"], "alpha": 0.25}])
    raw["finetune"].append({**raw["finetune"][0], "name": "wide", "updates": 20})
    plan = make_plan(sweep(**raw), inputs())
    merges = [job for job in plan.of_stage("merge") if job.payload["alpha"] == 0.25]
    assert len(merges) == 2
    for job in merges:
        specs: list[Any] = [plan.jobs[need].payload["spec"] for need in job.needs]
        seeds = {spec["seed"] for spec in specs}
        assert len(job.needs) == 2
        assert len(seeds) == 1


def test_donors_without_a_common_seed_are_an_error() -> None:
    raw = space(merge=[{"donors": ["narrow", "wide"], "alpha": 0.25}])
    raw["finetune"].append({**raw["finetune"][0], "name": "wide", "seed": 7})
    with pytest.raises(UserError, match="no seed was tuned by all of the donors narrow, wide"):
        make_plan(sweep(**raw), inputs())


def test_lists_of_a_merge_tell_its_rows_apart() -> None:
    weights = [[1, 0.5], [0.25, 1]]
    raw = space(
        merge=[
            {"donors": ["narrow", "wide"], "params": {"weights": item}, "alpha": 0.25}
            for item in weights
        ]
    )
    raw["finetune"].append({**raw["finetune"][0], "name": "wide"})
    plan = make_plan(sweep(**raw), inputs())
    assert {row.params["weights"] for row in plan.rows if row.params["alpha"] == 0.25} == {
        "1,0.5",
        "0.25,1",
    }


def test_rows_say_what_varies() -> None:
    raw = space()
    raw["finetune"][0]["anchor_penalty"] = {"grid": [0.0, 0.01]}
    plan = make_plan(sweep(**raw), inputs())
    row = next(
        row
        for row in plan.rows
        if row.params["alpha"] == 0.25 and row.params["anchor_penalty"] == 0.01
    )
    assert row.params["finetune"] == "narrow"
    assert "lambda=0.01" in row.title


def test_labels_of_runs_say_what_varies() -> None:
    """Four learning rates with one label: a failure did not say which one diverged, and one failure
    was counted as four."""
    raw = space()
    raw["finetune"][0] |= {"peak_learning_rate": {"grid": [1e-4, 1e-3]}, "seed": 0}
    plan = make_plan(sweep(**raw), inputs())
    assert [job.label for job in plan.of_stage("finetune")] == [
        "finetune narrow peak_learning_rate=0.0001 seed=0",
        "finetune narrow peak_learning_rate=0.001 seed=0",
    ]


def test_the_seed_of_a_merge_is_not_that_of_its_donors() -> None:
    params = {"density": 0.5, "seed": {"grid": [7, 8]}}
    raw = space(merge=[{"method": "dare_linear", "alpha": 0.25, "params": params}])
    plan = make_plan(sweep(**raw), inputs())
    rows = [row.params for row in plan.rows if row.params["method"] == "dare_linear"]
    assert {(row["merge_seed"], row["seed"]) for row in rows} == {(7, 0), (7, 1), (8, 0), (8, 1)}
    assert len({row.title for row in plan.rows}) == len(plan.rows)


def test_a_parameter_of_a_merge_is_told_from_a_field_of_its_donors() -> None:
    raw = space(merge=[{"method": "karcher", "alpha": 0.25, "params": {"scale": 0.5}}])
    adapter = {"rank": 2, "scale": {"grid": [4.0, 8.0]}}
    raw["finetune"][0] |= {"adapter": adapter, "seed": 0}
    plan = make_plan(sweep(**raw), inputs())
    rows = [row.params for row in plan.rows if row.params["alpha"] == 0.25]
    assert [(row["merge_scale"], row["scale"]) for row in rows] == [(0.5, 4.0), (0.5, 8.0)]
