"""The view of the runs table, and where a sweep was logged."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from speechft_ray.tracking.addresses import read_addresses, remember_address
from speechft_ray.tracking.mlflow_pages import make_view
from speechft_ray.tracking.mlflow_server import choose_port


def run(params: dict[str, str], **metrics: float) -> dict[str, Any]:
    """The data of a run as MLflow's REST API returns it."""
    return {
        "params": [{"key": key, "value": value} for key, value in params.items()],
        "metrics": [{"key": key, "value": value} for key, value in metrics.items()],
    }


def make_runs() -> list[dict[str, Any]]:
    scores = {"test/score": 600.0, "dev/score": 610.0, "test/pr.per": 5.0, "spread/pr.per": 1.0}
    runs = [run({"alpha": "0.0", "method": "none", "encoder": "tiny"}, **scores)]
    for alpha in ("0.25", "0.5"):
        for penalty in ("0", "0.01"):
            params = {"alpha": alpha, "lambda": penalty, "finetune.anchor_penalty": penalty}
            runs.append(run({**params, "method": "linear", "encoder": "tiny"}, **scores))
    return runs


def test_the_view_has_what_varies_and_the_scores() -> None:
    view = make_view(make_runs())
    assert view["selectedColumns"] == [
        *("params.`alpha`", "params.`lambda`", "params.`method`"),
        *("metrics.`dev/score`", "metrics.`test/score`", "metrics.`test/pr.per`"),
    ]
    assert (view["orderByKey"], view["orderByAsc"]) == ("metrics.`dev/score`", False)
    parallel, scatter = view["compareRunCharts"]
    # What the controls lack is no axis, nor is what differs like another param.
    assert parallel["selectedParams"] == ["alpha", "lambda"]
    assert scatter["xaxis"]["key"] == "alpha"


def test_a_view_without_results_is_sorted_by_alpha() -> None:
    view = make_view([run({"alpha": "0.25"})])
    # Sorted by time, MLflow folds the encoders below the run of the sweep.
    assert view["orderByKey"] == "params.`alpha`" and "compareRunCharts" not in view


def test_addresses_are_remembered_without_passwords(tmp_path: Path) -> None:
    remember_address(tmp_path, "first", "postgresql://me:secret@host/db")
    remember_address(tmp_path, "second", None)
    os.utime(tmp_path / "trackers" / "second.json", (1, 1))
    expected = {"first": "postgresql://me:***@host/db", "second": None}
    assert list(read_addresses(tmp_path).items()) == list(expected.items())
    remember_address(tmp_path, "second", None)  # used again
    assert list(read_addresses(tmp_path)) == ["second", "first"]
    assert "secret" not in (tmp_path / "trackers" / "first.json").read_text()
    (tmp_path / "trackers" / "damaged.json").write_text("[")
    (tmp_path / "trackers" / "empty.json").write_text("{}")
    assert set(read_addresses(tmp_path)) == set(expected)


def test_any_port_is_chosen_where_the_usual_one_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        monkeypatch.setattr("speechft_ray.tracking.mlflow_server.PORT", taken)
        assert choose_port(None) != taken
