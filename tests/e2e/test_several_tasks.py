"""Every way of using two tasks in one small sweep and one table: alone, multitask, merged pairs,
chains, early checkpoints."""

from __future__ import annotations

import csv
import threading
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from speechft_ray.commands.checks import check_names
from speechft_ray.commands.encoders import export_encoder
from speechft_ray.commands.parts import resolve_place
from speechft_ray.commands.results import publish_results
from speechft_ray.commands.sweep import open_sweep
from speechft_ray.core.errors import SpecError
from speechft_ray.core.space import parse_space
from speechft_ray.core.specs import SweepSpec
from speechft_ray.core.store import Store
from speechft_ray.merging.distance import compute_relative_distance
from speechft_ray.speech.checkpoints.load import load_checkpoint
from speechft_ray.speech.checkpoints.safetensors_dir import read_encoder
from speechft_ray.stages.perform import (
    ENCODER_FILE,
    _evaluate,
    perform,
    publish_start,
)
from speechft_ray.stages.sources import start_encoder
from speechft_ray.sweep.local import LocalExecutor
from speechft_ray.sweep.plan import Plan
from speechft_ray.sweep.publishing import Publisher
from speechft_ray.sweep.scheduler import jobs_to_run
from speechft_ray.sweep.space_file import read_space
from tests.e2e.small_world import PHONES, REPOSITORY, SMALL
from tests.sweep.fakes import FakeObserver, run_plan

SID = {"part": "sid", "speakers": 2, "train": 6, "dev": 4, "test": 2}
PR = {"part": "pr", "speakers": 2, "train": 6, "dev": 2, "test": 2}
TITLES = ["phones", "speakers", "both", "phones>speakers"]


def small(**changes: Any) -> SweepSpec:
    """The shipped space with everything made small."""
    shipped = read_space(REPOSITORY / "search_spaces" / "several_tasks.yaml").model_dump(
        mode="json", exclude_none=True
    )
    small_corpora = {"phones": {**PHONES, "train": 24, "dev": 1}, "sid": SID}
    for run in shipped["finetune"]:
        run |= {"updates": 4, "validate_every_updates": 2, "peak_learning_rate": 1e-3}
        for objective in run["objectives"]:
            objective |= {"batch_size": 3}
            objective["corpus"]["options"] = small_corpora[objective["corpus"]["options"]["part"]]
    shipped["finetune"][0]["keep_at"] = [0.5]
    shipped["merge"].append({"alpha": 0.25, "donors": ["phones"], "checkpoint": 0.5})
    for item, options, updates in zip(shipped["evaluate"], (PR, SID), (2, 4), strict=False):
        item |= {"updates": updates, "seeds": 1, "batch_size": 4}
        item["corpus"]["options"] = options
    shipped |= {"evaluate": shipped["evaluate"][:2], "score": SMALL["score"]}
    return parse_space({**shipped, **changes}, "the space")


class SmallRun(NamedTuple):
    plan: Plan
    store: Store
    table: list[dict[str, str]]

    def encoder(self, stage: str, key: str, file: str = ENCODER_FILE) -> dict[str, torch.Tensor]:
        return dict(read_encoder(self.store.folder(stage, key) / file).state)


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    home = tmp_path_factory.mktemp("several")
    spec = small()
    (home / "runs").mkdir()
    place = resolve_place(spec, storage=home / "runs", cpu=True)
    plan, store = open_sweep(spec, place, is_to_run=False).plan, Store(home / "runs")
    publish_start(place)
    failures = run_plan(
        plan,
        store,
        LocalExecutor(perform, place),
        FakeObserver(),
        lambda outcome: None,
        threading.Event(),
    )
    assert failures == [] and jobs_to_run(plan, store) == {}
    publish_results(
        plan, store, Publisher(plan, store, [], print), home / "report", failures, "finished", place
    )
    with (home / "report" / "table.csv").open(encoding="utf-8") as file:
        return SmallRun(plan, store, list(csv.DictReader(file)))


def test_one_table_has_every_way_beside_its_controls(small_run: SmallRun) -> None:
    seen = {
        (row["finetune"], row["method"], row["after_alpha"], row["at"], row["alpha"])
        for row in small_run.table
    }
    ways = [(title, "linear", "", "") for title in TITLES[:3]]
    ways += [("phones>speakers", "linear", alpha, "") for alpha in ("0.25", "1.0")]
    ways += [("phones+speakers", method, "", "") for method in ("linear", "ties")]
    ways.append(("phones", "linear", "", "0.5"))
    tuned = {(*way, alpha) for way in ways for alpha in ("0.25", "1.0")}
    assert seen == tuned | {("", "", "", "", "0.0")} and len(small_run.table) == len(seen)
    assert all(
        row["score"] and row["pr.per"] and row["sid.accuracy"] and not row["missing"]
        for row in small_run.table
    )
    roles = {row["alpha"]: row["role"] for row in small_run.table}
    assert roles == {"0.0": "pre-trained", "0.25": "merge", "1.0": "stable fine-tuning"}


def test_a_chain_is_tuned_from_the_merge_before_it_and_interpolates_with_it(
    small_run: SmallRun,
) -> None:
    """phi_2 = 0.75 phi_1 + 0.25 theta'_2, and phi_1 = 0.75 theta_0 + 0.25 theta'_1, recomputed
    here."""
    (last,) = [
        row.key
        for row in small_run.plan.rows
        if (row.params["finetune"], row.params.get("after_alpha"), row.params["alpha"])
        == ("phones>speakers", 0.25, 0.25)
    ]
    recipe: Any = small_run.plan.jobs[last].payload
    before: Any = small_run.plan.jobs[recipe["base"]].payload
    theta = dict(start_encoder("tiny_hubert")[0].state)
    first, second = (small_run.encoder("finetune", item["donors"][0]) for item in (before, recipe))
    phi = [theta, small_run.encoder("merge", recipe["base"]), small_run.encoder("merge", last)]
    moved = 0
    for name in theta:
        if not name.startswith(("final_proj", "label_embs")):
            torch.testing.assert_close(
                phi[1][name], 0.75 * theta[name] + 0.25 * first[name], rtol=1e-5, atol=1e-7
            )
            torch.testing.assert_close(
                phi[2][name], 0.75 * phi[1][name] + 0.25 * second[name], rtol=1e-5, atol=1e-7
            )
        moved += not torch.equal(second[name], phi[1][name])
        frozen = name.startswith("feature_extractor")
        assert not frozen or torch.equal(second[name], phi[1][name])
    assert moved > 10
    facts = small_run.store.manifest("finetune", recipe["donors"][0])
    assert facts["start"] == recipe["base"]


def test_an_early_checkpoint_is_a_donor_like_the_best_one(small_run: SmallRun) -> None:
    (row,) = [
        row
        for row in small_run.plan.rows
        if (row.params.get("at"), row.params["alpha"]) == (0.5, 1.0)
    ]
    recipe: Any = small_run.plan.jobs[row.key].payload
    early = small_run.encoder("finetune", recipe["donors"][0], "encoder-at-0.5.safetensors")
    best, merged = (
        small_run.encoder("finetune", recipe["donors"][0]),
        small_run.encoder("merge", row.key),
    )
    name = "encoder.layers.0.fc1.weight"
    assert torch.equal(merged[name], early[name]) and not torch.equal(early[name], best[name])
    assert (
        load_checkpoint(
            small_run.store.folder("finetune", recipe["donors"][0]) / "encoder-at-0.5.safetensors"
        ).provenance["checkpoint"]
        == 0.5
    )


def test_what_is_handed_out_tells_its_chain(small_run: SmallRun, tmp_path: Path) -> None:
    (row,) = [
        row
        for row in small_run.plan.rows
        if row.title == "linear alpha=1 phones>speakers after_alpha=1 seed=0"
    ]
    export_encoder(row.key, "safetensors", tmp_path / "out.safetensors", small_run.store.root)
    made = load_checkpoint(tmp_path / "out.safetensors").provenance
    recipe: Any = small_run.plan.jobs[row.key].payload
    before: Any = small_run.plan.jobs[recipe["base"]].payload
    assert made["parents"] == [recipe["base"], *recipe["donors"]]
    assert [item["merge"] for item in made["chain"]] == [recipe["base"]]
    assert made["chain"][0]["donors"] == before["donors"] and made["chain"][0]["alpha"] == 1


def collect_mistakes(**changes: Any) -> dict[str, str]:
    with pytest.raises(SpecError) as caught:
        check_names(small(**changes))
    return dict(caught.value.mistakes)


def test_checkpoints_and_methods_that_cannot_be_are_refused_before_anything_runs() -> None:
    mistakes = collect_mistakes(merge=[{"checkpoint": 0.2}])
    assert list(mistakes) == ["merge[0].checkpoint"] and mistakes["merge[0].checkpoint"].startswith(
        "the fine-tuning of phones, speakers, both keeps no weights at 0.2 of its updates: "
        "add it to `keep_at`"
    )
    runs = small().model_dump(mode="json", exclude_none=True)["finetune"]
    runs[0] |= {"gather": ["fisher"]}
    mistakes = collect_mistakes(
        finetune=runs, merge=[{"checkpoint": 0.5, "donors": ["phones"], "method": "fisher"}]
    )
    assert "gathered with the `best` checkpoint alone" in mistakes["merge[0].checkpoint"]
    runs[3]["after"] |= {"method": "fisherr"}
    runs[4]["after"] |= {"method": "regmean"}
    mistakes = collect_mistakes(finetune=runs)
    assert "method `fisherr`. Did you mean `fisher`?" in mistakes["finetune[3].after.method"]
    assert (
        "set `gather: [gram]` for the fine-tuning of phones" in mistakes["finetune[4].after.method"]
    )


def test_a_search_measures_the_distance_of_a_chain_to_the_pre_trained_encoder(
    small_run: SmallRun,
) -> None:
    (row,) = [
        row
        for row in small_run.plan.rows
        if row.title == "linear alpha=0.25 phones>speakers after_alpha=1 seed=0"
    ]
    evaluation = next(small_run.plan.jobs[key] for key in row.evaluations)
    payload = {
        **evaluation.payload,
        "splits": ["dev"],
        "recipe": dict(small_run.plan.jobs[row.key].payload),
    }
    job = evaluation.model_copy(update={"fingerprint": "on-dev", "payload": payload})
    place = resolve_place(small(), storage=small_run.store.root, cpu=True)
    _evaluate(job, place, small_run.store, lambda values: None)
    expected = compute_relative_distance(
        start_encoder("tiny_hubert")[0].state, small_run.encoder("merge", row.key)
    )
    assert (
        small_run.store.manifest("evaluate", "on-dev")["distance"]
        == pytest.approx(expected, rel=1e-5)
        and expected > 0
    )
