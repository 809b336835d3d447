"""Models in MLflow: a LoggedModel for each merge, and the winner, which `load_model` runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch

from speechft_ray.speech.checkpoints.base import FORMATS
from speechft_ray.speech.encoders.base import FAMILIES, EncoderWeights
from speechft_ray.sweep.protocols import EncoderRow, Model, SweepEnd, SweepInfo
from speechft_ray.tracking._model_registry import strip_front_matter
from speechft_ray.tracking.mlflow import MlflowTracker
from tests.tracking.storages import mlflow_storage, mlflow_template

__all__ = ["mlflow_storage", "mlflow_template"]  # fixtures

PR, SID = "1111111111111111", "2222222222222222"
"""Fingerprints of two corpora."""


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def make_row(alpha: float, dev: float) -> EncoderRow:
    return EncoderRow(
        key=f"merged-{alpha}",
        title=f"linear alpha={alpha}",
        params={"alpha": alpha, "method": "linear", "finetune": "phones", "seed": 0},
        dev={"score": dev, "pr.per": 100 - dev / 10},
        test={"score": dev - 1, "pr.per": 7.0, "sid.accuracy": 50.0},
        fields={"merge.alpha": str(alpha), "finetune.anchor_penalty": "0.01"},
        datasets={"pr": PR, "sid": SID},
        complete=True,
    )


ROWS = [make_row(0.25, 700.0), make_row(0.5, 650.0), make_row(1.0, 600.0)]


def log_sweep(storage: Path, winner: EncoderRow) -> MlflowTracker:
    tracker = MlflowTracker(None, storage)
    tracker.start(
        SweepInfo("sweep-key", "alpha", {}, tags={"commit": "abc"}, files={"a.yaml": "x"})
    )
    for row in ROWS:
        tracker.log_encoder(row)
    leaks = {ROWS[1].key: ["phones was tuned on 3 of the 9 test utterances of pr"]}
    tracker.finish(SweepEnd("finished", winner=winner, leaks=leaks))
    return tracker


def open_client(storage: Path) -> Any:
    return mlflow.MlflowClient(f"sqlite:///{storage / 'mlflow.db'}")


def test_every_merge_is_a_model_with_metrics_on_its_corpora(mlflow_storage: Path) -> None:
    for winner in (ROWS[1], ROWS[0]):  # a second run selects another one
        log_sweep(mlflow_storage, winner)
    client = open_client(mlflow_storage)
    experiment = client.get_experiment_by_name("alpha").experiment_id
    best_first = [{"field_name": "metrics.dev/score", "ascending": False}]
    models = list(client.search_logged_models([experiment], order_by=best_first))
    assert [model.tags["speechft.key"] for model in models] == [row.key for row in ROWS]
    (starred,) = client.search_logged_models([experiment], "tags.`speechft.winner` = 'true'")
    assert starred.model_id == models[0].model_id and str(starred.status) == "READY"
    assert starred.params["lambda"] == "0.01" and starred.params["alpha"] == "0.25"
    digests = {metric.key: metric.dataset_digest for metric in starred.metrics}
    assert digests["test/pr.per"] == digests["dev/pr.per"] == PR
    assert digests["test/sid.accuracy"] == SID and digests["dev/score"] is None
    run = client.get_run(starred.source_run_id)
    inputs = {item.dataset.name: item.dataset.digest for item in run.inputs.dataset_inputs}
    assert inputs == {"pr": PR, "sid": SID}


def test_the_run_of_a_sweep_says_what_won_and_how_it_was_made(mlflow_storage: Path) -> None:
    log_sweep(mlflow_storage, ROWS[0])
    client = open_client(mlflow_storage)
    experiment = client.get_experiment_by_name("alpha").experiment_id
    (parent,) = client.search_runs([experiment], "tags.`speechft.kind` = 'sweep'")
    assert parent.data.tags["speechft.winner"] == "a=0.25 l=0.01 linear s0 phones"
    assert parent.data.tags["speechft.winner.alpha"] == "0.25"
    assert parent.data.tags["speechft.made.commit"] == "abc"
    assert parent.data.metrics["best/dev/score"] == 700.0
    assert parent.data.metrics["best/test/sid.accuracy"] == 50.0
    artifacts = [item.path for item in client.list_artifacts(parent.info.run_id, "provenance")]
    assert artifacts == ["provenance/a.yaml"]
    (leaky,) = client.search_runs(
        [experiment],
        "tags.`speechft.leaks` LIKE '%3 of the 9%' and tags.`speechft.kind` = 'encoder'",
    )
    assert leaky.info.run_name == "a=0.5 l=0.01 linear s0 phones"


def test_the_page_of_a_model_shows_its_card_without_the_yaml_head() -> None:
    assert strip_front_matter('---\nlicense: "mit"\n---\n# A card\n\n---\n') == "# A card\n\n---\n"
    assert strip_front_matter("# A card\n---\nx\n---\n") == "# A card\n---\nx\n---\n"


@pytest.mark.filterwarnings("ignore::UserWarning")  # of MLflow, about type hints of models
def test_the_champion_gives_the_hidden_states_of_the_encoder(
    mlflow_storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = FAMILIES.get("hubert")
    assert family.init_weights is not None and family.example_config is not None
    weights = family.init_weights(family.example_config(2, 32, False), 0)

    def write(folder: Path) -> None:
        FORMATS.get("hf").write(folder, weights, {})

    tracker = log_sweep(mlflow_storage, ROWS[0])
    for _ in range(2):  # registered once
        tracker.register_model(ROWS[0], Model(tmp_path, "# A card", write))
    client = open_client(mlflow_storage)
    (version,) = client.search_model_versions("name = 'speechft-alpha'")
    assert version.description == "# A card" and version.tags["speechft.key"] == ROWS[0].key
    assert not list((mlflow_storage / "work").iterdir())

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{mlflow_storage / 'mlflow.db'}")
    model = mlflow.pyfunc.load_model("models:/speechft-alpha@champion")
    waveform = np.random.default_rng(0).standard_normal(8000).astype(np.float32)
    states = model.predict(waveform)
    expected = compute_states(weights, waveform)
    assert states.shape == expected.shape == (3, 24, 32)
    np.testing.assert_allclose(states, expected, atol=1e-4)
    np.testing.assert_array_equal(model.predict([waveform])[0], states)
    pickles = [path for path in mlflow_storage.rglob("*") if path.suffix in (".pkl", ".bin")]
    assert pickles == []


def compute_states(weights: EncoderWeights, waveform: np.ndarray[Any, Any]) -> Any:
    """The hidden states by our own encoder, s3prl's network: another implementation."""
    encoder = FAMILIES.get(weights.family).build(weights)
    with torch.inference_mode():
        states, _ = encoder.hidden_states([torch.from_numpy(waveform)])
    return torch.stack([state[0] for state in states]).numpy()


def test_an_encoder_that_transformers_does_not_have_is_registered_as_it_is(
    mlflow_storage: Path, tmp_path: Path
) -> None:
    from speechft_ray.core.errors import UserError

    unit = tmp_path / "unit"
    unit.mkdir()
    (unit / "encoder.safetensors").write_bytes(b"weights")

    def refuse(folder: Path) -> None:
        raise UserError("--to hf cannot hold it")

    tracker = log_sweep(mlflow_storage, ROWS[0])
    tracker.register_model(ROWS[0], Model(unit, "card", refuse))
    (version,) = open_client(mlflow_storage).search_model_versions("name = 'speechft-alpha'")
    assert version.tags["speechft.layout"] == "raw"
    (copied,) = mlflow_storage.rglob("encoder.safetensors")
    assert copied.read_bytes() == b"weights"


def test_a_server_without_models_gets_everything_else(
    mlflow_storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise mlflow.MlflowException("API request failed with error code 404 != 200")

    monkeypatch.setattr("mlflow.tracking.MlflowClient.search_logged_models", refuse)
    log_sweep(mlflow_storage, ROWS[0])
    runs = open_client(mlflow_storage).search_runs(["1", "2"], "tags.`speechft.kind` = 'encoder'")
    assert sorted(run.data.metrics["dev/score"] for run in runs) == [600.0, 650.0, 700.0]


def test_an_old_version_without_a_flavour_is_registered_again(
    mlflow_storage: Path, tmp_path: Path
) -> None:
    """Version 0.4.0 registered the file of the store."""
    tracker = log_sweep(mlflow_storage, ROWS[0])
    client = open_client(mlflow_storage)
    client.create_registered_model("speechft-alpha")
    old = client.create_model_version(
        "speechft-alpha", tmp_path.as_uri(), tags={"speechft.key": ROWS[0].key}
    )
    (tmp_path / "weights").write_bytes(b"")
    tracker.register_model(replace(ROWS[0]), Model(tmp_path, "card", lambda folder: folder.mkdir()))
    champion = client.get_model_version_by_alias("speechft-alpha", "champion")
    assert champion.version != old.version and champion.tags["speechft.layout"] == "pyfunc"
