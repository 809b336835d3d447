"""A curve over alpha through the whole road, on the donors of a finished sweep."""

from __future__ import annotations

import csv
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from speechft_ray.commands import sweep as commands
from speechft_ray.commands.parts import resolve_place
from speechft_ray.core.space import parse_space
from speechft_ray.core.store import Store
from speechft_ray.sweep.plan import Plan
from speechft_ray.sweep.plan_file import read_plan
from speechft_ray.sweep.predictions import is_prediction
from speechft_ray.sweep.rows import FEATURE_ERROR, read_rows
from speechft_ray.sweep.scheduler import run_jobs
from tests.identity.recordings import write_recordings


def test_a_curve_is_predicted_verified_and_reported(
    storage_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "open_trackers", lambda *_: [])
    raw = yaml.safe_load((Path(__file__).parents[1] / "identity" / "small_sweep.yaml").read_text())
    raw |= {"name": "curve", "finetune": raw["finetune"][:1], "evaluate": raw["evaluate"][:1]}
    raw |= {"merge": [{"alpha": {"curve": 6, "verify": 1}}]}
    raw["score"] = {"zero": "measured", "topline": {"label.accuracy": 101}}
    spec, store = parse_space(raw, "test"), Store(storage_copy)
    (encoder,) = storage_copy.glob("encoder/*/encoder.safetensors")
    manifest = write_recordings(tmp_path / "recordings")
    place = resolve_place(
        spec, storage=storage_copy, encoder=str(encoder), manifest=manifest, cpu=True
    )

    sweep = commands.open_sweep(spec, place)
    performed: list[bool] = []

    def look(plan: Plan, *arguments: Any) -> None:
        performed.append(plan.jobs.keys() <= read_plan(store, plan.fingerprint).plan.jobs.keys())
        run_jobs(plan, *arguments)

    monkeypatch.setattr(commands, "run_jobs", look)
    planned = [job.key for job in sweep.list_planned_jobs()]
    assert planned[-2:] == ["verified 0", "verified 0 label"]
    assert commands.run(sweep, None, tmp_path / "report", None, threading.Event()) == []
    assert performed == [True, True]  # gc keeps what the stored plan has, also while it runs

    # Alphas 0, 0.5 and 1 are encodings; of the four between them one is verified.
    rows = read_rows(sweep.plan, store)
    predicted = [row for row in rows if is_prediction(row.params)]
    assert sorted(row.params["alpha"] for row in predicted) == [0.2, 0.4, 0.6, 0.8]
    assert all("score" in row.dev and not row.test for row in predicted)
    best = max(predicted, key=lambda row: row.dev["score"]).params["alpha"]
    real = [row for row in rows if not is_prediction(row.params)]
    assert sorted(row.params["alpha"] for row in real) == sorted([0.0, 0.5, 1.0, best])
    (verified,) = [row for row in real if row.params["alpha"] == best]
    errors = [value for name, value in verified.extra.items() if name.startswith(FEATURE_ERROR)]
    assert errors
    assert 0 < min(errors) <= max(errors) < 1
    # The cache was empty: the first prediction encoded what it needs, and the others nothing.
    encoded = sorted(
        store.manifest("evaluate", row.evaluations[0])["encoded_seconds"]
        for row in sweep.plan.rows
        if is_prediction(row.params)
    )
    assert encoded[:3] == [0.0, 0.0, 0.0]
    assert encoded[3] > 0

    # The report tells them apart, and a later run finds everything.
    records = list(csv.DictReader((tmp_path / "report" / "table.csv").read_text().splitlines()))
    assert [one["predicted_from"] for one in records if one["role"] == "prediction"] == [
        "0,0.5,1"
    ] * 4
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "Predicted and verified" in page
    again = commands.open_sweep(spec, place)
    assert again.list_planned_jobs() == []
    assert {row.key for row in again.plan.rows} == {row.key for row in sweep.plan.rows}
