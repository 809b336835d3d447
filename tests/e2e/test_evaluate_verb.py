"""``speechft evaluate``: one encoder on one task, from a folder in a real layout to a metric, and
again from the store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from speechft_ray.cli import main
from speechft_ray.core.records import read_scores
from speechft_ray.speech.checkpoints.safetensors_dir import write_encoder
from tests.speech.layouts import iemocap, voxceleb1
from tests.speech.toy_models import toy_hubert


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an encoder, two corpora and a storage folder, for all tests here."""
    folder = tmp_path_factory.mktemp("evaluate")
    write_encoder(folder / "encoder.safetensors", toy_hubert(), {})
    iemocap.lay_out(folder / "iemocap")
    voxceleb1.lay_out(folder / "vox")
    return folder


def evaluate(home: Path, task: str, *more: str, corpus: str | None = None) -> int:
    corpus_arguments = ["--corpus", str(home / corpus)] if corpus else []
    place = [
        "--encoder",
        str(home / "encoder.safetensors"),
        "--storage",
        str(home / "runs"),
        "--in-process",
    ]
    return main(["evaluate", "--task", task, *corpus_arguments, *place, *more])


def facts_of(home: Path, task: str) -> list[dict[str, Any]]:
    manifests = [
        json.loads(path.read_text()) for path in (home / "runs").glob("evaluate/*/manifest.json")
    ]
    return [facts for facts in manifests if facts["spec"]["task"] == task]


def test_emotions_are_five_folds_by_themselves(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(home, "er", "--updates", "2", corpus="iemocap") == 0
    (facts,) = facts_of(home, "er")
    assert facts["spec"]["folds"] == {"fold": [1, 2, 3, 4, 5]}
    test = next(score for score in read_scores(facts) if score.split == "test")
    assert f"{test.mean:.2f}" in capsys.readouterr().out


def test_a_grid_of_rates_is_searched_and_the_second_call_computes_nothing(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--updates", "3", "--learning-rate", "1e-1,1e-3", "--seeds", "2")
    assert evaluate(home, "sid", *arguments, corpus="vox") == 0
    (facts,) = facts_of(home, "sid")
    assert len(facts["grid"]) == 4
    assert not list((home / "runs" / "work").iterdir())  # a published unit has no saved states
    first = capsys.readouterr().out
    assert "done: evaluate sid" in first
    assert evaluate(home, "sid", *arguments, corpus="vox") == 0
    again = capsys.readouterr().out
    assert "done: " not in again
    assert again.splitlines()[-3:] == first.splitlines()[-3:]
    assert len(facts_of(home, "sid")) == 1


def test_results_are_logged_where_they_are_asked_for(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--updates", "3", "--learning-rate", "1e-1,1e-3", "--seeds", "2")
    for _ in range(2):  # the same evaluation is the same entry
        assert evaluate(home, "sid", *arguments, "--track", "jsonl", corpus="vox") == 0
    assert "Log: " in capsys.readouterr().err
    (log,) = (home / "runs").rglob("evaluations-*.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    (entry,) = (line for line in lines if line["kind"] == "encoder")
    (facts,) = (item for item in facts_of(home, "sid") if item["spec"]["seeds"] == 2)
    test = next(score for score in read_scores(facts) if score.split == "test")
    assert entry["metrics"]["sid.accuracy"] == test.mean
    assert entry["params"]["tasks"] == "sid" and entry["complete"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("sidd",), "Did you mean `sid`?"),
        (("chars",), "say how many with --updates"),
        (("sid,", "--updates", "2"), "unknown task ``"),
        (("sid", "--track", "mlflo"), "unknown tracker `mlflo`"),
        (("sid", "--learning-rate", "fast"), "--learning-rate must be a number"),
        (("sid", "--learning-rate", "-1"), "must be greater than 0"),
        (("sid", "--corpus-option", "fold=1"), "unknown field `fold`"),
        (("sid", "--option", "projektion=3"), "Did you mean `projection`?"),
    ],
)
def test_bad_input_is_reported(
    home: Path, arguments: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(home, *arguments, corpus="vox") == 2
    assert sentence in capsys.readouterr().err


def test_a_missing_folder_is_reported(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(home, "sid", corpus="missing") == 2
    assert "missing" in capsys.readouterr().err
