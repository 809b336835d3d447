"""What trackers get of an evaluation outside any sweep."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest

from speechft_ray.commands.evaluation_tracking import track_evaluations
from speechft_ray.core.records import Place
from tests.tracking.storages import mlflow_storage, mlflow_template

__all__ = ["mlflow_storage", "mlflow_template"]  # fixtures

SPEC = {
    "task": "sid",
    "corpus": {"name": "synthetic", "options": {"part": "sid"}},
    "updates": 30,
    "learning_rate": 0.1,
}
FACTS = {
    "spec": SPEC,
    "encoder": "e" * 16,
    "scores": [{"metric": "sid.accuracy", "split": "test", "values": [50.0]}],
}


def test_mlflow_has_the_name_and_every_setting_of_an_evaluation(
    mlflow_storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    place = Place(storage=str(mlflow_storage), encoder="/encoders/hubert_base")
    notes: list[str] = []
    track_evaluations({"sid": FACTS}, place, ("mlflow",), None, notes.append)
    assert notes == []
    client = mlflow.MlflowClient(f"sqlite:///{mlflow_storage / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("evaluations").experiment_id
    (run,) = client.search_runs([experiment], "tags.`speechft.kind` = 'encoder'")
    assert run.info.run_name == "evaluate sid hubert_base"
    assert run.data.metrics["test/sid.accuracy"] == 50.0
    params = run.data.params
    assert params["evaluate.sid.updates"] == "30" and params["evaluate.sid.learning_rate"] == "0.1"
    assert params["evaluate.sid.corpus.options.part"] == "sid"
    assert params["evaluate.sid.precision"] == "float32"  # at its default
    assert params["encoder"] == "/encoders/hubert_base" and params["tasks"] == "sid"
