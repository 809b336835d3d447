"""Units that were computed before the renaming keep their fingerprints.

``tests/data/fingerprints_before_renaming.json`` was written by the commit before it (925bdd4), by
the same steps as ``plan_fingerprints``. A shipped search space that is changed on purpose is taken
out of that file.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from speechft_ray.commands.parts import (
    RESOURCES,
    SEARCH_SPACES,
    component_version,
    corpus_identity,
    plan_inputs,
    set_resources,
)
from speechft_ray.core.merge_spec import MergeSpec
from speechft_ray.core.records import STAGES, Place
from speechft_ray.core.registry import Registry
from speechft_ray.core.resources import StageResources
from speechft_ray.core.specs import CorpusSpec
from speechft_ray.merging.base import METHODS
from speechft_ray.search.plan import make_search_plan
from speechft_ray.speech.corpora.base import CORPORA
from speechft_ray.speech.heads.base import HEADS
from speechft_ray.stages.sources import start_encoder
from speechft_ray.superb.tasks.base import TASKS
from speechft_ray.sweep.inputs import Component, Inputs
from speechft_ray.sweep.plan import make_plan
from speechft_ray.sweep.space_file import read_space
from speechft_ray.sweep.stops import stop_key

HERE = Path(__file__).parent
SPACES = {
    path.stem: path for folder in (SEARCH_SPACES, HERE) for path in sorted(folder.rglob("*.yaml"))
}
BEFORE = json.loads((HERE.parent / "data/fingerprints_before_renaming.json").read_text())
PLACE = Place(storage="nowhere", encoder="tiny_hubert")
ENCODER_LAYERS = 12


def corpus_or_its_spec(spec: CorpusSpec) -> tuple[str, bool]:
    """Returns the real identity of a synthetic corpus, and a stand-in for one whose files are not
    here."""
    if CORPORA.get(spec.name).needs_root:
        return f"{spec.name} {json.dumps(spec.options, sort_keys=True)}", False
    return corpus_identity(spec, PLACE)


def plan_fingerprints(path: Path) -> dict[str, list[str]]:
    """Returns all fingerprints of the plan of a space, by stage. A search plans one trial."""
    spec = read_space(path)
    inputs = Inputs(
        encoder=start_encoder("tiny_hubert")[1],
        corpus=corpus_or_its_spec,
        version_of=component_version,
    )
    if spec.search is None:
        plan = make_plan(spec, inputs)
        jobs, whole = plan.jobs, plan.fingerprint
    else:
        search = make_search_plan(spec, inputs, ENCODER_LAYERS)
        recipe = search.builder.merge_recipe(MergeSpec(alpha=0.3), [search.space.runs[0][1]])
        for task in search.tasks:
            search.builder.add_dev_evaluation(task, recipe, "trial 0")
        jobs, whole = search.jobs, search.fingerprint
    stages: dict[str, list[str]] = {
        stage: sorted(key for key, job in jobs.items() if job.stage == stage) for stage in STAGES
    }
    stops = sorted(stop_key(job) for job in jobs.values() if "stop" in job.payload)
    return {"plan": [whole], **stages, "stopped": stops}


@pytest.mark.parametrize("name", BEFORE)
def test_a_plan_has_the_fingerprints_that_it_had_before_the_renaming(name: str) -> None:
    assert plan_fingerprints(SPACES[name]) == BEFORE[name]


@pytest.mark.parametrize(
    ("component", "registry", "name", "stages"),
    [
        ("head", HEADS, "frame", {"finetune", "merge", "evaluate"}),
        ("method", METHODS, "ties", {"merge", "evaluate"}),
        ("task", TASKS, "pr", {"evaluate"}),
    ],
)
def test_versions_of_registered_parts_are_planned(
    component: Component,
    registry: Registry[Any],
    name: str,
    stages: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = read_space(SEARCH_SPACES / "strategies.yaml")
    before = make_plan(spec, plan_inputs(PLACE))
    part = registry.get(name)
    assert component_version(component, name) == part.version == 1
    monkeypatch.setitem(registry._parts, name, dataclasses.replace(part, version=2))
    after = make_plan(spec, plan_inputs(PLACE))
    fresh = [job for key, job in after.jobs.items() if key not in before.jobs]
    assert {job.stage for job in fresh} == stages
    if component == "task":
        specs: list[Any] = [job.payload["spec"] for job in fresh]
        assert {item["task"] for item in specs} == {name}


def test_the_fingerprints_cover_the_shipped_spaces_and_every_stage() -> None:
    assert len(BEFORE) > 20
    assert all(any(stages[stage] for stages in BEFORE.values()) for stage in (*STAGES, "stopped"))


def test_resources_are_not_part_of_identity() -> None:
    spec = read_space(HERE / "small_sweep.yaml")
    inputs = Inputs(encoder="e", corpus=corpus_or_its_spec, version_of=component_version)
    whole: Any = {"cpus": 8, "gpus": 0.5, "memory_gb": 64, "labels": {"zone": "a"}}
    stages: Any = {stage: StageResources(**whole) for stage in ("finetune", "merge", "evaluate")}
    asking = spec.model_copy(update={"resources": stages})
    requests = set_resources(RESOURCES, stages)
    plain, other = (
        make_plan(spec, inputs),
        make_plan(asking, dataclasses.replace(inputs, resources=requests)),
    )
    assert plain.fingerprint == other.fingerprint
    assert plain.jobs.keys() == other.jobs.keys()
    job = other.of_stage("finetune")[0]
    assert (job.resources.cpus, job.resources.memory_bytes) == (8, 64_000_000_000)
