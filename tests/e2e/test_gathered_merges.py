"""Merges that need statistics of the donors' tuning sets, from fine-tuning to merged encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from speechft_ray.commands.checks import check_names
from speechft_ray.commands.parts import resolve_place
from speechft_ray.commands.sweep import open_sweep
from speechft_ray.core.errors import SpecError
from speechft_ray.core.space import parse_space
from speechft_ray.core.specs import SweepSpec
from speechft_ray.core.store import Store
from speechft_ray.merging.algebra import merge
from speechft_ray.speech.checkpoints.safetensors_dir import read_encoder
from speechft_ray.stages.layer_grams import compute_layer_grams
from speechft_ray.stages.perform import (
    ENCODER_FILE,
    STATISTICS_FILE,
    perform,
    publish_start,
)
from speechft_ray.stages.sources import start_encoder
from tests.e2e.small_world import PHONES, SMALL


def space(gather: list[str]) -> SweepSpec:
    corpus = {"options": {**PHONES, "train": 6, "dev": 2}}
    run = {
        **SMALL["finetune"][0],
        "updates": 4,
        "validate_every_updates": 4,
        "seed": 0,
        "gather": gather,
    }
    runs = [
        {
            **run,
            "name": name,
            "objectives": [{**run["objectives"][0], "corpus": corpus, "weight": weight}],
        }
        for name, weight in (("one", 1.0), ("two", 2.0))
    ]
    merges = [
        {"method": method, "donors": ["one", "two"], "alpha": 0.5}
        for method in ("fisher", "regmean", "regmean_plusplus")
    ]
    return parse_space({**SMALL, "finetune": runs, "merge": merges}, "the space")


def test_merges_read_what_the_fine_tuning_gathered(tmp_path: Path) -> None:
    spec = space(["fisher", "gram", "waves"])
    place = resolve_place(spec, storage=tmp_path, cpu=True)
    plan, store = open_sweep(spec, place, is_to_run=False).plan, Store(tmp_path)
    publish_start(place)
    corpora = {key for job in plan.of_stage("finetune") for key in job.needs}
    for job in plan.jobs.values():
        if (
            job.fingerprint in corpora
            or job.stage == "finetune"
            or (job.stage == "merge" and job.payload["alpha"] == 0.5)
        ):
            perform(job, place, lambda values: None)
    folders = [store.folder("finetune", job.fingerprint) for job in plan.of_stage("finetune")]
    statistics = [load_file(folder / STATISTICS_FILE) for folder in folders]
    assert set(statistics[0]) == set(statistics[1])
    assert {
        f"{kind}:encoder.layers.0.self_attn.q_proj.weight" for kind in ("fisher", "gram")
    } <= set(statistics[0])
    assert not any("feature_extractor" in key for key in statistics[0])  # frozen: no statistics
    assert not store.find_damaged_files("finetune", folders[0].name)
    base, donors = (
        start_encoder(place.encoder)[0],
        [read_encoder(folder / ENCODER_FILE).state for folder in folders],
    )
    assert sum(key.startswith("waves:") for key in statistics[0]) == 6  # all training utterances
    prefixes = ("final_proj", "label_embs")
    layer_grams = compute_layer_grams(base, donors, prefixes, statistics, {})
    plain = merge("linear", {}, base.state, donors, 0.5, prefixes)
    differing = 0
    for job in plan.of_stage("merge"):
        if job.payload["alpha"] == 0.5:
            made = read_encoder(store.folder("merge", job.fingerprint) / ENCODER_FILE).state
            expected = merge(
                str(job.payload["method"]),
                {},
                base.state,
                donors,
                0.5,
                prefixes,
                layer_grams if job.payload["method"] == "regmean_plusplus" else statistics,
            )
            assert all(torch.equal(made[name], value) for name, value in expected.items())
            differing += not torch.equal(
                made["encoder.layers.0.fc1.weight"], plain["encoder.layers.0.fc1.weight"]
            )
    assert differing == 3


@pytest.mark.parametrize(
    ("gather", "paths"),
    [
        ([], ["merge[0].method", "merge[1].method", "merge[2].method"]),
        (["fisher"], ["merge[1].method", "merge[2].method"]),
        (["gram", "fisher"], ["merge[2].method"]),
        (["gram", "fisher", "waves"], []),
    ],
)
def test_a_merge_without_its_statistics_is_refused_before_anything_runs(
    gather: list[str], paths: list[str]
) -> None:
    spec: Any = space(gather)
    if not paths:
        check_names(spec)
        return
    with pytest.raises(SpecError) as caught:
        check_names(spec)
    assert [path for path, _ in caught.value.mistakes] == paths
    kind = next(kind for kind in ("fisher", "gram", "waves") if kind not in gather)
    sentence = (
        f"needs {kind} statistics of the donors' tuning sets: set `gather: [{kind}]` for the "
        "fine-tuning of one, two."
    )
    assert sentence in caught.value.mistakes[0][1]
