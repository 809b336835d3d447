"""The base encoder of a sweep: downloaded by name, stored once, read from the store by workers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import JsonValue

from speechft_ray.cli import main
from speechft_ray.commands.parts import resolve_place
from speechft_ray.core.records import Job, Place
from speechft_ray.core.space import parse_space
from speechft_ray.core.store import Store
from speechft_ray.speech.checkpoints.load import load_encoder, weights_fingerprint
from speechft_ray.speech.checkpoints.safetensors_dir import write_encoder
from speechft_ray.stages.perform import perform, publish_start
from tests.e2e.small_world import SMALL, write_space
from tests.speech.network import serve_network
from tests.speech.toy_models import toy_hubert


def make_pretrained_job(base: str) -> Job:
    """Returns the control alpha 0: a copy of the base encoder."""
    payload: dict[str, JsonValue] = {"method": "pretrained", "params": {}, "alpha": 0.0}
    payload |= {"donors": [], "base": base}
    return Job(stage="merge", fingerprint="0" * 16, label="merge alpha=0", payload=payload)


def test_a_worker_needs_neither_the_file_nor_a_network(tmp_path: Path) -> None:
    weights, storage = toy_hubert(), tmp_path / "runs"
    key = weights_fingerprint(weights)
    write_encoder(tmp_path / "base", weights, {})
    publish_start(Place(storage=str(storage), encoder=str(tmp_path / "base")))
    assert [path.name for path in (storage / "encoder").iterdir()] == [key]

    perform(
        make_pretrained_job(key),
        Place(storage=str(storage), encoder="/a/path/of/another/machine"),
        lambda values: None,
    )
    merged = load_encoder(storage / "merge" / ("0" * 16) / "encoder.safetensors")
    assert all(torch.equal(merged.state[name], tensor) for name, tensor in weights.state.items())


def test_it_is_written_once_and_again_when_damaged(tmp_path: Path) -> None:
    write_encoder(tmp_path / "base", toy_hubert(), {})
    place = Place(storage=str(tmp_path / "runs"), encoder=str(tmp_path / "base"))
    publish_start(place)
    file = next((tmp_path / "runs").glob("encoder/*/encoder.safetensors"))
    time_ns, content = file.stat().st_mtime_ns, file.read_bytes()
    publish_start(place)
    assert file.stat().st_mtime_ns == time_ns
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    publish_start(place)
    assert file.read_bytes() == content
    assert Store(tmp_path / "runs").fingerprints("encoder") == [file.parent.name]


def test_names_take_precedence_over_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = parse_space(SMALL, where="test")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny_hubert").mkdir()

    def resolve(name: str) -> str:
        return resolve_place(spec, storage=tmp_path, encoder=name).encoder

    assert resolve("tiny_hubert") == "tiny_hubert"
    assert resolve("./tiny_hubert") == str(tmp_path / "tiny_hubert")
    assert resolve("hf:some/model@v1") == "hf:some/model@v1"


def test_a_plan_of_a_published_encoder_downloads_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = toy_hubert()
    monkeypatch.setenv("SPEECHFT_CACHE", str(tmp_path / "cache"))
    command = ["run", "--plan", "--encoder", "hubert_base", "--storage", str(tmp_path / "runs")]
    command += ["--space", str(write_space(tmp_path))]
    with serve_network(tmp_path / "served", monkeypatch) as network:
        torch.save(
            {**weights.config, "model_weight": dict(weights.state)},
            network.folder / "hubert_base_ls960.pt",
        )
        assert main(command) == 0
    output = capsys.readouterr()
    assert "Downloading hubert_base into" in output.err
    assert "Nothing was run." in output.out
    assert main(command) == 0  # the server is gone
    assert "Downloading" not in capsys.readouterr().err
