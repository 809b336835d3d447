"""``speechft evaluate``: one encoder on one task, from a folder in a real layout to a metric, and
again from the store."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from speechft_ray.cli import main
from speechft_ray.commands import executors, parts
from speechft_ray.core.records import Job, Place, read_scores
from speechft_ray.core.store import Store
from speechft_ray.speech.checkpoints.safetensors_dir import write_encoder
from speechft_ray.stages.perform import perform
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


def test_a_task_for_own_recordings_asks_for_them(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(home, "label", "--updates", "5") == 2
    assert "with --corpus FILE --column NAME" in " ".join(capsys.readouterr().err.split())


def test_an_address_of_mlflow_alone_logs_there(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--updates", "3", "--encoder", "fbank", "--mlflow")
    assert evaluate(home, "sid", *options, f"sqlite:///{tmp_path}/m.db", corpus="vox") == 0
    assert "MLflow: " in capsys.readouterr().err and (tmp_path / "m.db").is_file()


def test_a_missing_folder_is_reported(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(home, "sid", corpus="missing") == 2
    assert "missing" in capsys.readouterr().err


def test_a_node_without_the_mount_is_the_reason(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its worker says done, and the result is in another folder."""
    (tmp_path / "node").mkdir()
    places: list[Place] = []

    def perform_elsewhere(job: Job, place: Place, report: Any) -> Any:
        places.append(place)
        return perform(job, place.model_copy(update={"storage": str(tmp_path / "node")}), report)

    monkeypatch.setattr(parts, "perform", perform_elsewhere)
    monkeypatch.setattr(executors, "CONFIRM_SECONDS", 0.0)
    options = ("--encoder", "fbank", "--updates", "4")
    assert evaluate(home, "sid", *options, corpus="vox") == 1
    assert "does not appear here: the worker's node sees another folder" in capsys.readouterr().err
    # A worker that compares it with the marker of its own folder refuses the job before.
    identity = json.loads((home / "runs" / "storage.json").read_text())["id"]
    assert {place.storage_id for place in places} == {identity}


def test_a_result_that_appears_late_is_waited_for(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients of NFS may say for a while that a file is not there."""

    def perform_unseen(job: Job, place: Place, report: Any) -> Any:
        facts = perform(job, place, report)
        folder = Store(Path(place.storage)).folder(job.stage, job.fingerprint)
        hidden = folder.rename(folder.with_name(f".{folder.name}"))
        threading.Timer(0.3, hidden.rename, [folder]).start()
        return facts

    monkeypatch.setattr(parts, "perform", perform_unseen)
    assert evaluate(home, "sid", "--encoder", "fbank", "--updates", "5", corpus="vox") == 0
    assert any(facts["spec"]["updates"] == 5 for facts in facts_of(home, "sid"))


def test_a_result_that_is_gone_is_said(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(parts, "perform", lambda job, place, report: {})
    monkeypatch.setattr(executors.OnDemandExecutor, "_check_store", lambda _, outcome, __: outcome)
    assert evaluate(home, "sid", "--encoder", "fbank", "--updates", "6", corpus="vox") == 1
    assert "failed: evaluate sid" in capsys.readouterr().err
