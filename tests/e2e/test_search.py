"""A search as a person runs it, in one process and on Ray: the same trials and the same answer,
selected on dev."""

from __future__ import annotations

import csv
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from speechft_ray.commands import results
from speechft_ray.commands import sweep as commands
from speechft_ray.commands.parts import resolve_place
from speechft_ray.core.space import parse_space
from speechft_ray.core.store import Store
from tests.e2e.small_world import SMALL, manifests, places, run
from tests.identity.recordings import write_recordings
from tests.tracking.storages import mlflow_template
from tests.tracking.views import read_registered_model, view_of

__all__ = ["mlflow_template"]  # a fixture
SEARCH: dict[str, Any] = {
    "trials": 5,
    "max_concurrent": 2,
    "axes": {
        "alpha": {"uniform": [0, 1]},
        "method": {"choice": ["linear", "ties"]},
        "ties": {"density": {"uniform": [0.2, 1]}},
    },
}


def search_space(folder: Path, **changes: Any) -> Path:
    """Writes the small world as a search on one cheap task and returns its path."""
    finetune = {**SMALL["finetune"][0], "updates": 6, "validate_every_updates": 6, "seed": 0}
    raw = {
        "name": "small-search",
        "finetune": [finetune],
        "search": {**SEARCH, **changes},
        "evaluate": [SMALL["evaluate"][1]],
        "score": {"zero": "measured", "topline": {"sid.accuracy": 100}},
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "search.yaml"
    path.write_text(json.dumps(raw, indent=1))
    return path


def trials(report: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((report / "trials.csv").read_text(encoding="utf-8").splitlines()))


@pytest.fixture(scope="module")
def reference_home(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Path:
    home = tmp_path_factory.mktemp("search")
    (home / "runs").mkdir()
    shutil.copy(mlflow_template / "mlflow.db", home / "runs" / "mlflow.db")
    done = run("search_merge.py", *places(home, search_space(home)), "--in-process")
    assert done.returncode == 0, done.stderr + done.stdout
    assert "5 of 5 proposals (tpe)" in done.stdout and "Chosen on dev: trial" in done.stdout
    return home


def test_test_is_for_what_was_chosen(reference_home: Path) -> None:
    units = manifests(reference_home / "runs")
    evaluations = [facts for key, facts in units.items() if key.startswith("evaluate/")]
    dev_only = [facts for facts in evaluations if facts.get("splits") == ["dev"]]
    assert len(dev_only) == len({row["encoder"] for row in trials(reference_home / "report")})
    assert all({score["split"] for score in facts["scores"]} == {"dev"} for facts in dev_only)
    full = [facts for facts in evaluations if "splits" not in facts]
    assert len(full) == 4  # FBank, both controls, the winner
    (winner,) = [row for row in trials(reference_home / "report") if row["chosen"] == "1"]
    merges = {key.removeprefix("merge/") for key in units if key.startswith("merge/")}
    assert winner["encoder"] in merges and len(merges) == 3  # nothing else was kept
    dev = {facts["encoder"]: facts["scores"][0]["values"] for facts in dev_only}
    (again,) = [facts for facts in full if facts["encoder"] == winner["encoder"]]
    assert again["scores"][0]["values"] == dev[winner["encoder"]]  # the same dev, to the last digit


def test_the_report_shows_the_search(reference_home: Path) -> None:
    page = (reference_home / "report" / "index.html").read_text(encoding="utf-8")
    assert "The search" in page and "Chosen on dev: trial" in page
    for name in ("search_history.png", "search_slice.png"):
        assert (reference_home / "report" / name).read_bytes().startswith(b"\x89PNG")
    assert not (reference_home / "report" / "search_pareto.png").exists()


def test_trackers_have_every_trial_and_the_champion(reference_home: Path) -> None:
    rows = trials(reference_home / "report")
    (winner,) = [row for row in rows if row["chosen"] == "1"]
    (log,) = (reference_home / "runs" / "log" / "small-search").glob("*.jsonl")
    sweep = json.loads(log.read_text().splitlines()[0])["key"]
    view = view_of(reference_home / "runs", sweep)
    assert view.ended == "finished"
    for row in rows:
        logged = view.encoders[f"{row['encoder']}.{row['trial']}"]
        assert logged["dev.sid.accuracy"] == pytest.approx(float(row["dev.sid.accuracy"]))
        assert not any(name.startswith("sid.") for name in logged)
    assert read_registered_model(reference_home / "runs") == (winner["encoder"], 1)
    assert (reference_home / "runs" / "search" / sweep / "study.db").is_file()


@pytest.mark.slow
def test_the_same_search_on_ray_is_the_same(reference_home: Path, tmp_path: Path) -> None:
    """Another executor and another order of ends; only what a search itself evaluates is taken away
    beforehand."""
    shutil.copytree(
        reference_home / "runs",
        tmp_path / "runs",
        ignore=shutil.ignore_patterns("report", "search", "mlartifacts"),
    )
    for key, facts in manifests(tmp_path / "runs").items():
        if facts.get("splits") == ["dev"] or key.startswith("merge/"):
            shutil.rmtree(tmp_path / "runs" / key)
    done = run("search_merge.py", *places(tmp_path, search_space(tmp_path)), "--cpu")
    assert done.returncode == 0, done.stderr + done.stdout
    assert trials(tmp_path / "report") == trials(reference_home / "report")
    units, reference = manifests(tmp_path / "runs"), manifests(reference_home / "runs")
    assert {key: units[key] for key in reference if not key.startswith("merge/")} == {
        key: facts for key, facts in reference.items() if not key.startswith("merge/")
    }
    (merged,) = [
        key for key in units if key.startswith("merge/")
    ]  # the winner is always there, and nothing else was needed
    assert units[merged] == reference[merged]


def test_a_screen_encodes_for_the_evaluations_behind_it_and_changes_none(
    finished_storage: Path, storage_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The evaluations of a finished search are removed; those of trials that pass the screen come
    back with the same scores, and without encoding."""
    monkeypatch.setattr(commands, "open_trackers", lambda *_: [])
    monkeypatch.setattr(results, "write_report", lambda *_: None)
    raw = yaml.safe_load((Path(__file__).parents[1] / "identity" / "small_search.yaml").read_text())
    raw |= {"name": "screened", "evaluate": raw["evaluate"][:1]}
    raw["search"] |= {"screen": {"by": "ridge"}}
    raw["score"] = {"zero": "measured", "topline": {"label.accuracy": 101}}
    before = manifests(finished_storage)
    for key, facts in before.items():
        if facts.get("splits") == ["dev"]:
            shutil.rmtree(storage_copy / key)
    (encoder,) = storage_copy.glob("encoder/*/encoder.safetensors")
    manifest = write_recordings(tmp_path / "recordings")
    spec = parse_space(raw, "test")
    place = resolve_place(
        spec, storage=storage_copy, encoder=str(encoder), manifest=manifest, cpu=True
    )
    sweep = commands.open_sweep(spec, place)
    assert commands.run(sweep, None, tmp_path / "report", None, threading.Event()) == []

    store = Store(storage_copy)
    units = {key: store.manifest("evaluate", key) for key in store.fingerprints("evaluate")}
    of_search = {key: facts for key, facts in units.items() if facts.get("splits") == ["dev"]}
    screens = [facts for facts in of_search.values() if facts.get("kind") == "screen"]
    full = {key: facts for key, facts in of_search.items() if "kind" not in facts}
    assert 0 < len(full) < len(screens) == 4
    assert all(0 <= facts["screen"]["ridge"] <= 100 for facts in screens)
    assert all(facts["encoded_seconds"] > 0 for facts in screens)
    for key, facts in full.items():
        assert facts["encoded_seconds"] == 0.0
        assert facts["scores"] == before[f"evaluate/{key}"]["scores"]


@pytest.mark.slow
def test_rungs_lead_to_the_bits_of_a_full_evaluation(reference_home: Path, tmp_path: Path) -> None:
    """The evaluations that both searches make in full are equal; no state of a probe is left."""
    shutil.copytree(
        reference_home / "runs",
        tmp_path / "runs",
        ignore=shutil.ignore_patterns("report", "search", "mlartifacts", "work"),
    )
    for key, facts in manifests(tmp_path / "runs").items():
        if facts.get("splits") == ["dev"]:
            shutil.rmtree(tmp_path / "runs" / key)
    space = search_space(tmp_path, rungs=[0.2, 0.5, 1], reduction_factor=2)
    done = run("search_merge.py", *places(tmp_path, space), "--in-process")
    assert done.returncode == 0, done.stderr + done.stdout
    assert "Trials by the rung that they were evaluated up to: 5 to 0.2" in done.stdout
    rows = trials(tmp_path / "report")
    assert {row["rung"] for row in rows} <= {"0.2", "0.5", "1.0"}
    assert [row["rung"] == "1.0" for row in rows] == [row["state"] == "complete" for row in rows]
    units, reference = manifests(tmp_path / "runs"), manifests(reference_home / "runs")
    paused = [facts for facts in units.values() if "pause" in facts]
    assert {facts["pause_at"] for facts in paused} <= {4, 10}
    both = [
        key
        for key, facts in units.items()
        if facts.get("splits") == ["dev"] and "pause" not in facts and key in reference
    ]
    assert both
    for key in both:
        assert {**units[key], "made_with": None} == {**reference[key], "made_with": None}
    assert not list((tmp_path / "runs" / "work").glob("evaluate-*"))
