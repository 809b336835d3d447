"""Renamed fields: both names are read, the first one is hashed and stored, both at once are
refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from speechft_ray.cli import main
from speechft_ray.core.errors import SpecError
from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.core.space import old_field_names
from speechft_ray.core.spec_base import RenamedSpec
from speechft_ray.core.specs import SearchSpec, StopSpec
from speechft_ray.core.validation import validate
from speechft_ray.sweep.space_file import read_space

OLD: list[tuple[type[RenamedSpec], dict[str, Any]]] = [
    (SearchSpec, {"trials": 8, "axes": {}, "window": 3, "margin": 1.5}),
    (StopSpec, {"rule": "asha", "grace": 0.5, "keep_one_of": 3}),
]
NEW: list[dict[str, Any]] = [
    {"trials": 8, "axes": {}, "max_concurrent": 3, "pruning_margin": 1.5},
    {"rule": "asha", "grace_period": 0.5, "reduction_factor": 3},
]
PHONES = {"options": {"part": "phones", "speakers": 2, "train": 4, "dev": 4, "test": 0}}
PR = {"options": {"part": "pr", "speakers": 4, "train": 4, "dev": 4, "test": 4}}
SPACE: dict[str, Any] = {
    "name": "old",
    "finetune": [
        {
            "name": "a",
            "objectives": [{"head": "frame", "corpus": PHONES, "column": "phones"}],
            "updates": 1,
        }
    ],
    "merge": [{"alpha": 0.5}],
    "evaluate": [{"task": "pr", "corpus": PR, "updates": 1}],
    "stop_tuning": {"rule": "asha", "grace": 0.5, "reduction_factor": 3},
}


@pytest.mark.parametrize(("old", "new"), list(zip(OLD, NEW, strict=True)))
def test_both_names_are_one_spec(
    old: tuple[type[RenamedSpec], dict[str, Any]], new: dict[str, Any]
) -> None:
    model, raw = old
    spec = model.model_validate(raw)
    assert spec == model.model_validate(new)
    assert spec.model_dump(exclude_unset=True) == raw  # what is stored has the first names
    assert fingerprint(spec) == fingerprint(model.model_validate(new))
    assert model.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(("old", "new"), list(zip(OLD, NEW, strict=True)))
def test_both_names_at_once_are_refused(
    old: tuple[type[RenamedSpec], dict[str, Any]], new: dict[str, Any]
) -> None:
    model, raw = old
    name, first = next(iter(model.first_names.items()))
    with pytest.raises(SpecError) as caught:
        validate(model, {**new, first: raw[first]}, "here")
    sentence = f"has `{name}` and `{first}`, which is the old name of `{name}`: keep `{name}`."
    assert caught.value.mistakes == (("(all)", sentence),)


def test_an_unknown_field_is_compared_with_the_new_names() -> None:
    with pytest.raises(SpecError, match="Did you mean `max_concurrent`"):
        validate(SearchSpec, {"trials": 8, "axes": {}, "max_concurent": 3}, "here")


def test_a_file_with_an_old_name_gives_one_note(tmp_path: Path) -> None:
    path, notes = tmp_path / "space.yaml", list[str]()
    path.write_text(json.dumps(SPACE, indent=1))
    line = path.read_text().splitlines().index('  "grace": 0.5,') + 1
    spec = read_space(path, notes.append)
    assert spec.stop_tuning == StopSpec(rule="asha", grace_period=0.5, reduction_factor=3)
    text = (
        "`stop_tuning.grace` is now called `stop_tuning.grace_period`; the old name is still read."
    )
    assert notes == [f"{path}:{line}:3: {text}"]


@pytest.mark.parametrize("raw", [None, [], {"search": None}, {"search": {"max_concurrent": 2}}])
def test_new_names_give_no_note(raw: Any) -> None:
    assert old_field_names(raw) == []


def test_the_command_line_prints_the_note_to_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(json.dumps(SPACE, indent=1))
    assert main(["plan", "--space", str(path), "--storage", str(tmp_path / "runs")]) == 0
    printed = capsys.readouterr()
    assert printed.err.count("`stop_tuning.grace_period`") == 1 and "grace" not in printed.out
