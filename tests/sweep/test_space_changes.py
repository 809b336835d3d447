"""``--set PATH=VALUE`` reaches every field of a search space, and says where a path leads
nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from speechft_ray.core.errors import SpecError, UserError
from speechft_ray.core.merge_spec import MergeSpec
from speechft_ray.core.resources import StageResources
from speechft_ray.core.rung_spec import ScreenSpec
from speechft_ray.core.specs import (
    AdapterSpec,
    AfterSpec,
    CorpusSpec,
    EvalSpec,
    FinetuneSpec,
    Objective,
    ScoreSpec,
    SearchSpec,
    StopSpec,
    SweepSpec,
)
from speechft_ray.sweep.space_changes import make_changes, parse_changes
from speechft_ray.sweep.space_file import open_space

TEXT = """
name: alpha
finetune:
  - name: phones
    objectives: [{head: frame, corpus: {name: synthetic}, column: phones}]
    updates: 10
  - name: later
    objectives: [{head: frame, corpus: {name: synthetic}, column: phones}]
    updates: 10
merge:
  - alpha: {grid: [0, .25, 1]}
evaluate:
  - {task: pr, corpus: {name: synthetic}, updates: 5}
  - {task: sid, corpus: {name: synthetic}, updates: 5}
"""
VALUES: dict[type[BaseModel], tuple[str, dict[str, str]]] = {
    SweepSpec: (
        "",
        {
            "name": "other",
            "encoder": "hubert_base",
            "finetune": "[{name: a, objectives: [{head: ctc, corpus: {}}], updates: 3}]",
            "merge": "[{alpha: 0.5}]",
            "search": "null",
            "evaluate": "[{task: er, corpus: {}, updates: 2}]",
            "score": "{zero: measured, topline: {pr.per: 1}}",
            "stop_tuning": "{rule: asha}",
            "resources": "{finetune: {cpus: 2}}",
        },
    ),
    FinetuneSpec: (
        "finetune[1]",
        {
            "name": "other",
            "objectives": "[{head: ctc, corpus: {}}]",
            "updates": "7",
            "peak_learning_rate": "1e-3",
            "schedule": "[0.2, 0.3, 0.5]",
            "head_only_fraction": "0.3",
            "freeze_front_end": "false",
            "anchor_penalty": "0.5",
            "clip_norm": "2",
            "validate_every_updates": "3",
            "crop_seconds": "4.5",
            "seed": "5",
            "gather": "[fisher]",
            "after": "{finetune: phones}",
            "adapter": "{kind: dora}",
            "keep_at": "[0.2]",
            "head_phase_dropout": "false",
            "non_finite_limit": "0",
            "precision": "tf32",
        },
    ),
    Objective: (
        "finetune[0].objectives[0]",
        {
            "head": "ctc",
            "corpus": "{name: timit}",
            "column": "text",
            "weight": "2.5",
            "batch_size": "3",
            "options": "{unit: characters}",
        },
    ),
    CorpusSpec: ("evaluate[0].corpus", {"name": "timit", "options": "{part: pr}"}),
    AdapterSpec: (
        "finetune[0].adapter",
        {"kind": "dora", "rank": "3", "scale": "2", "layers": "[fc1]"},
    ),
    AfterSpec: (
        "finetune[1].after",
        {"finetune": "phones", "method": "ties", "params": "{density: 0.5}", "alpha": "0.125"},
    ),
    MergeSpec: (
        "merge[0]",
        {
            "method": "ties",
            "params": "{density: 0.5}",
            "alpha": "0.125",
            "donors": "[phones]",
            "checkpoint": "0.5",
            "control": "false",
            "predicted_from": "[0, 0.5]",
            "verify": "1",
        },
    ),
    EvalSpec: (
        "evaluate[1]",
        {
            "task": "er",
            "name": "other",
            "in_score": "false",
            "corpus": "{name: timit}",
            "column": "x",
            "updates": "9",
            "learning_rate": "[1e-3, 1e-2]",
            "batch_size": "2",
            "validate_every_updates": "4",
            "seeds": "3",
            "options": "{protocol: clean}",
            "folds": "{fold: [1, 2]}",
            "features": "int8",
            "rank": "8",
            "precision": "bfloat16",
            "patience": "2",
        },
    ),
    ScoreSpec: ("score", {"zero": "measured", "topline": "{pr.per: 0}"}),
    StopSpec: (
        "stop_tuning",
        {"rule": "median", "grace_period": "0.5", "reduction_factor": "3"},
    ),
    SearchSpec: (
        "search",
        {
            "trials": "5",
            "axes": "{alpha: {uniform: [0, 1]}}",
            "objectives": "[pr.per]",
            "constraints": "[{metric: pr.per, no_worse_than: pretrained}]",
            "sampler": "random",
            "seed": "4",
            "max_concurrent": "2",
            "stop_early": "none",
            "pruning_margin": "1.5",
            "rungs": "[0.5, 1]",
            "reduction_factor": "2",
            "random_share": "0.25",
            "screen": "{by: nearest_mean}",
        },
    ),
    ScreenSpec: (
        "search.screen",
        {"by": "nearest_mean", "tasks": "[sid]", "reduction_factor": "3"},
    ),
    StageResources: (
        "resources.evaluate",
        {"cpus": "2", "gpus": "0.5", "memory_gb": "8", "labels": "{zone: a}"},
    ),
}
BESIDE = {
    ("merge[0]", "predicted_from"): ["merge[0].alpha=0.125"],
    ("merge[0]", "verify"): ["merge[0].alpha=0.125", "merge[0].predicted_from=[0, 0.5]"],
    ("score", "zero"): ["score.topline.pr.per=0", "score.topline.sid.accuracy=100"],
    ("score", "topline"): ["score.zero=measured"],
    ("stop_tuning", "*"): ["stop_tuning.rule=asha"],
    ("search", "*"): ["merge=[]", "search.trials=9", "search.axes={alpha: {uniform: [0, 0.5]}}"],
    ("finetune[1].after", "*"): ["finetune[1].after.finetune=phones"],
    ("search.screen", "*"): [
        *("merge=[]", "search.trials=9", "search.axes={alpha: {uniform: [0, 0.5]}}"),
        "search.screen.by=ridge",
    ],
    ("search", "reduction_factor"): [
        *("merge=[]", "search.trials=9", "search.axes={alpha: {uniform: [0, 0.5]}}"),
        "search.rungs=[0.5, 1]",
    ],
    ("evaluate[1]", "rank"): ["evaluate[1].features=compact"],
    ("", "search"): ["merge=[{alpha: 0.5}]"],
}
"""What another field needs beside it."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "space.yaml"
    file.write_text(TEXT)
    return file


def read(path: Path, *texts: str) -> SweepSpec:
    return open_space(path, changes=parse_changes(texts)).spec


def follow(spec: Any, place: str) -> Any:
    for part in place.replace("[", ".").replace("]", "").split(".") if place else []:
        if part.isdigit():
            spec = spec[int(part)]
        else:
            spec = spec[part] if isinstance(spec, dict) else getattr(spec, part)
    return spec


@pytest.mark.parametrize("model", VALUES, ids=lambda model: model.__name__)
def test_every_field_is_reached(path: Path, model: type[BaseModel]) -> None:
    place, values = VALUES[model]
    assert set(values) == set(model.model_fields), "a field has no example here"
    for name, text in values.items():
        beside = BESIDE.get((place, name), BESIDE.get((place, "*"), []))
        full = f"{place}.{name}" if place else name
        spec = read(path, *beside, f"{full}={text}")
        value = parse_changes([f"{full}={text}"])[0].value
        changed = follow(spec, place)
        fields = {key: getattr(changed, key) for key in model.model_fields}
        reference = model.model_validate({**fields, name: value})
        assert getattr(changed, name) == getattr(reference, name), full


def test_all_entries_are_changed_at_once(path: Path) -> None:
    spec = read(path, "evaluate[*].updates=77", "merge[0].alpha={grid: [0.5, 0.75]}")
    assert [item.updates for item in spec.evaluate] == [77, 77]
    assert [item.alpha for item in spec.merge] == [0.5, 0.75]


def test_metric_names_keep_their_dots(path: Path) -> None:
    spec = read(path, "score.zero=measured", "score.topline.pr.per=1")
    assert spec.score.topline == {"pr.per": 1.0}
    quoted = read(path, "score.zero=measured", 'score.topline."pr.per"=2')
    assert quoted.score.topline == {"pr.per": 2.0}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("finetune[0].updatez=3", "--set: finetune[0].updatez: unknown field `updatez`. Did you"),
        ("finetune[0].updates=few", "--set: finetune[0].updates: must be a whole number, but"),
        ("finetun[0].updates=3", "unknown field `finetun`. Did you mean `finetune`?"),
        ("finetune.updates=3", "`finetune` is a list here: write finetune[0] to finetune[1]"),
        ("finetune[2].updates=3", "`finetune` is a list here: write finetune[0] to finetune[1]"),
        ("finetune[0].schedule[0]=3", "has no `finetune[0].schedule`: set the whole list"),
        ("name.x=3", "`name` is 'alpha', which has no fields"),
        ("score[0]=3", "has no `score`: set the whole list"),
        ("[0]=3", "must be PATH=VALUE"),
        ("merge[0]", "must be PATH=VALUE"),
        ("merge[0].alpha={grid: [", "has a value that is not YAML"),
        ("name=!!python/object/apply:os.system [ls]", "has a value that is not YAML"),
        ("merge[*].alpha=2", "--set: merge[0].alpha: must be at most 1, but is 2 instead."),
    ],
)
def test_a_path_that_leads_nowhere_is_one_sentence(path: Path, text: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        read(path, text)
    assert sentence in str(caught.value)


def test_mistakes_of_the_file_keep_their_lines(path: Path) -> None:
    path.write_text(TEXT.replace("updates: 5}\n  - {task: sid", "updates: -5}\n  - {task: sid"))
    with pytest.raises(SpecError) as caught:
        read(path, "finetune[0].updates=0")
    assert [place.removeprefix(str(path)) for place in caught.value.places] == ["--set", ":13:43"]


def test_values_of_python_are_changes_too(path: Path) -> None:
    changes = make_changes({"merge[0].alpha": 0.5, "evaluate[*].seeds": 2})
    spec = open_space(path, changes=changes).spec
    assert spec.merge[0].alpha == 0.5 and {item.seeds for item in spec.evaluate} == {2}
