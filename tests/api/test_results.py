"""The Python API over a finished storage: what it returns is what the reports of that sweep say."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import speechft_ray
from speechft_ray.api.results import SweepResults
from speechft_ray.commands.stored import read_sweep
from speechft_ray.core.errors import UserError
from speechft_ray.core.store import Store
from speechft_ray.speech.checkpoints.load import weights_fingerprint
from speechft_ray.speech.checkpoints.safetensors_dir import read_encoder
from speechft_ray.sweep.protocols import Leak
from tests.conftest import STORE


@pytest.fixture(scope="module")
def sweep(finished_storage: Path) -> SweepResults:
    results = speechft_ray.open(finished_storage).sweep("small-sweep")
    assert isinstance(results, SweepResults)
    return results


def test_the_table_has_the_numbers_that_were_reported(sweep: SweepResults) -> None:
    with (STORE / "tables" / "small_sweep.csv").open(encoding="utf-8", newline="") as file:
        reported = list(csv.DictReader(file))
    table = sweep.table()
    assert list(table["title"]) == [row["title"] for row in reported]
    for name in ("score", "dev.score", "label.accuracy", "chars.cer", "alpha"):
        numbers = [float(row[name]) for row in reported]
        assert list(table[name]) == pytest.approx(numbers, rel=1e-12), name
    assert table["chosen"].sum() == 1 and bool(sweep.best()["chosen"])


def test_a_search_has_the_rows_that_it_selected(finished_storage: Path) -> None:
    search = speechft_ray.open(finished_storage).sweep("small-search")
    record = json.loads((STORE / "sweeps" / "small-search.json").read_text(encoding="utf-8"))
    assert search.best()["encoder"] == record["winner"]["merge"]
    assert set(search.table()["encoder"]) <= set(record["rows"])


def test_encoders_are_those_of_the_store(sweep: SweepResults, finished_storage: Path) -> None:
    table = sweep.table()
    for row, key in list(enumerate(table["encoder"]))[:2]:
        stored = read_encoder(finished_storage / "merge" / key / "encoder.safetensors")
        expected = weights_fingerprint(stored)
        for name in (row, key, table["title"][row]):
            assert weights_fingerprint(sweep.encoder(name)) == expected
    best = sweep.best()
    chosen = sweep.encoder()
    assert weights_fingerprint(chosen) == weights_fingerprint(sweep.encoder(best["encoder"]))
    encoder = speechft_ray.build_encoder(chosen)
    states = encoder.hidden_states([torch.zeros(4000)]).states
    assert len(states) == encoder.state_count and states[0].shape[-1] == encoder.dim


def test_a_curve_has_every_merge_once_and_begins_pretrained(sweep: SweepResults) -> None:
    curve, table = sweep.curve(), sweep.table()
    own = curve[curve["alpha"] > 0]
    assert sorted(own["score"]) == sorted(table[table["alpha"] > 0]["score"])
    pretrained = float(table[table["role"] == "pre-trained"]["score"].iloc[0])
    for _, points in curve.groupby("series"):
        assert points["alpha"].is_monotonic_increasing
        assert next(iter(points["score"])) == pretrained
    with_counts = curve.dropna(subset=["low"])
    assert len(with_counts) and (with_counts["low"] - 1e-9 <= with_counts["score"]).all()
    assert (with_counts["score"] <= with_counts["high"] + 1e-9).all()


def test_leaks_are_those_of_the_table(finished_storage: Path) -> None:
    store = Store(finished_storage)
    stored = read_sweep(store, "small-sweep")
    assert len(SweepResults(store, stored).leaks()) == 0
    leak = Leak("letters", "label", 3, 40, 2, 4)
    key = stored.plan.rows[1].key
    leaky = replace(stored, data=replace(stored.data, leaks={key: (leak, leak)}))
    leaks = SweepResults(store, leaky).leaks()
    assert leaks.to_dict("records") == [{**leak._asdict(), "sentence": leak.sentence()}]


def test_all_sweeps_are_listed(finished_storage: Path) -> None:
    sweeps = speechft_ray.open(finished_storage).sweeps()
    assert list(sweeps["sweep"]) == ["small-search", "small-sweep"]
    assert set(sweeps["status"]) == {"finished"}


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda sweep: sweep.encoder("alpha 0.24"), "has no row `alpha 0.24`"),
        (lambda sweep: sweep.encoder(99), "has the rows 0 to"),
        (lambda sweep: sweep.curve("pr.per"), "has the metrics score, "),
    ],
)
def test_what_is_not_there_is_one_sentence(
    sweep: SweepResults, call: object, sentence: str
) -> None:
    assert callable(call)
    with pytest.raises(UserError, match=sentence):
        call(sweep)


def test_unknown_sweeps_and_storages_are_one_sentence(
    finished_storage: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="Did you mean `small-sweep`"):
        speechft_ray.open(finished_storage).sweep("small-swep")
    with pytest.raises(UserError, match="there is no storage folder"):
        speechft_ray.open(tmp_path / "none")


def test_a_name_loads_only_what_it_needs() -> None:
    code = (
        "import sys, speechft_ray; names = sorted(dir(speechft_ray)); "
        "heavy = {'torch', 'ray', 'mlflow', 'pandas'} & set(sys.modules); "
        "print(heavy or 'light', *[n for n in names if not n.startswith('_')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = "build_encoder evaluate load_encoder merge open run"
    assert done.stdout.split() == ["light", *names.split()]
    with pytest.raises(AttributeError, match="no attribute 'sweeep'"):
        _ = speechft_ray.sweeep
