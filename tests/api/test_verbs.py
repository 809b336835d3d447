"""The verbs as functions: they answer from a finished storage what the command line answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import speechft_ray
from speechft_ray.api import verbs
from speechft_ray.api.results import SweepResults
from speechft_ray.commands import evaluate, executors, parts
from speechft_ray.core.errors import SpecError, UserError
from speechft_ray.core.records import read_scores
from speechft_ray.core.store import Store
from speechft_ray.report.winner import read_record
from speechft_ray.sweep.plan_file import read_plan

IDENTITY = Path(__file__).parents[1] / "identity"


def fail_to_open(*arguments: object, **more: object) -> None:
    raise AssertionError("a job was to be computed")


@pytest.fixture(autouse=True)
def _compute_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "open_executor", fail_to_open)
    monkeypatch.setattr(executors, "open_executor", fail_to_open)


def run_small_sweep(home: Path, storage: Path) -> SweepResults:
    results: SweepResults = speechft_ray.run(
        IDENTITY / "small_sweep.yaml",
        address=None,
        storage=storage,
        encoder=str(home / "start.safetensors"),
        manifest=_find_manifest(home),
        track="none",
        cpu=True,
        changes={"evaluate[0].seeds": 2},
    )
    return results


def test_run_returns_the_results(finished_storage: Path, storage_copy: Path) -> None:
    sweep = run_small_sweep(finished_storage.parent, storage_copy)
    expected = speechft_ray.open(finished_storage).sweep("small-sweep")
    assert sweep.table().equals(expected.table()) and sweep.status == "finished"
    assert (storage_copy / "report" / "small-sweep" / "index.html").is_file()


def test_run_returns_its_own_results_where_the_name_is_taken(
    finished_storage: Path, storage_copy: Path
) -> None:
    """Another space of this name has a winner in the storage; both records are kept."""
    record = storage_copy / "sweeps" / "small-sweep.json"
    other = {**json.loads(record.read_text()), "plan": "f" * 16}
    record.write_text(json.dumps(other))
    sweep = run_small_sweep(finished_storage.parent, storage_copy)
    plan = read_record(Store(finished_storage), "small-sweep").plan
    assert read_record(Store(storage_copy), f"small-sweep-{plan[:8]}").plan == plan
    expected = speechft_ray.open(finished_storage).sweep("small-sweep").table()
    assert sweep.table().equals(expected)
    assert json.loads(record.read_text()) == other


def test_a_storage_may_be_a_url() -> None:
    with pytest.raises(UserError, match="`s4`"):
        speechft_ray.run("alpha", storage="s4://bucket/runs")
    with pytest.raises(UserError, match="`s4`"):
        speechft_ray.evaluate("fbank", "pr", storage="s4://bucket/runs", updates=1)


def _find_manifest(home: Path) -> Path:
    (manifest,) = home.rglob("*.tsv")
    return manifest


def test_evaluate_returns_one_row_per_metric_and_split(finished_storage: Path) -> None:
    """The evaluation of the start encoder is that of the control of the sweep."""
    home, store = finished_storage.parent, Store(finished_storage)
    scores = speechft_ray.evaluate(
        home / "start.safetensors",
        "label",
        corpus=_find_manifest(home),
        storage=finished_storage,
        column="sound",
        updates=12,
        learning_rate=1e-2,
        batch_size=4,
        seeds=2,
        cpu=True,
    )
    plan = read_plan(store, read_record(store, "small-sweep").plan).plan
    control = next(row for row in plan.rows if row.params["alpha"] == 0)
    stored = read_scores(store.manifest("evaluate", control.evaluations[0]))
    assert list(scores["value"]) == [score.mean for score in stored]
    assert list(scores["split"]) == [score.split for score in stored]
    assert set(scores["seeds"]) == {2} and set(scores["unit"]) == {"percent"}


def test_merge_writes_the_weighted_mean(tmp_path: Path) -> None:
    base, tuned = ({"w": torch.full((2, 3), value)} for value in (1.0, 3.0))
    save_file(base, tmp_path / "base.safetensors")
    save_file(tuned, tmp_path / "tuned.safetensors")
    out = speechft_ray.merge(
        "linear",
        tmp_path / "base.safetensors",
        [tmp_path / "tuned.safetensors"],
        tmp_path / "out.safetensors",
        alpha=0.25,
    )
    assert torch.equal(load_file(out)["w"], torch.full((2, 3), 1.5))


def test_bad_input_is_the_sentence_of_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Did you mean `alpha`\?"):
        speechft_ray.run("alfa", storage=tmp_path / "runs")
    with pytest.raises(SpecError, match=r"--set: merge\[0\].alpha: must be at most 1"):
        speechft_ray.run("alpha", storage=tmp_path / "runs", changes={"merge[0].alpha": 2})
    with pytest.raises(UserError, match="`sid` is named twice"):
        speechft_ray.evaluate("tiny_hubert", ["sid", "sid"], storage=tmp_path / "runs")
    with pytest.raises(UserError, match="unknown tracker `mlflo`"):
        speechft_ray.run("alpha", storage=tmp_path / "runs", track="mlflo")
    assert not (tmp_path / "runs" / "evaluate").exists()


def test_spreads_are_sample_deviations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 80, 82 and 87: the squares 9, 1 and 16 over 2; of one value there is none."""
    scores = [
        {"metric": "sid.accuracy", "split": split, "values": values}
        for split, values in (("dev", [80.0, 82.0, 87.0]), ("test", [80.0]))
    ]
    monkeypatch.setattr(verbs, "resolve_encoder", lambda name: name)
    monkeypatch.setattr(verbs, "evaluate_tasks", lambda *_: {"sid": {"scores": scores}})
    frame = verbs.evaluate("any", "sid")
    assert frame["value"].tolist() == [83.0, 80.0]
    assert frame["spread"][0] == pytest.approx(13**0.5) and frame["spread"].isna()[1]
    assert frame["seeds"].tolist() == [3, 1]
    assert evaluate._with_spread("sid.accuracy", (80.0, 82.0, 87.0)) == "83.00 ± 3.61"
    assert evaluate._with_spread("sid.accuracy", (80.0,)) == "80.00"
