"""The verbs encoders, new and export: their files, their output, and their errors, which write
nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from speechft_ray.cli import main
from speechft_ray.commands.encoders import find_merged_encoder
from speechft_ray.core.store import Store
from speechft_ray.report.lines import group_rows
from speechft_ray.report.winner import select_winner
from speechft_ray.speech.checkpoints.load import load_checkpoint, load_encoder
from speechft_ray.speech.checkpoints.safetensors_dir import write_encoder
from tests.report.report_data import ROWS
from tests.speech.toy_models import toy_hubert

KEYS = ("aa11111111111111", "aa22222222222222", "bb33333333333333")


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with three merged encoders, one of them without its weights, and two sweeps, one
    without a winner."""
    store = Store(tmp_path_factory.mktemp("exchange") / "runs")
    for number, key in enumerate(KEYS):
        recipe = {
            "method": "linear",
            "params": {},
            "alpha": 0.25,
            "donors": ["d" * 16],
            "base": "b" * 16,
        }
        with store.publish("merge", key, recipe) as folder:
            write_encoder(
                folder / "encoder.safetensors",
                toy_hubert(number),
                {"by": "speechft_ray merge", **recipe},
            )
    (store.folder("merge", KEYS[2]) / "encoder.safetensors").unlink()
    selected = select_winner(group_rows(ROWS))
    assert selected is not None
    for name, winner in (
        ("alpha", {**selected.model_dump(mode="json"), "merge": KEYS[1]}),
        ("young", None),
    ):
        record = {
            "sweep": name,
            "plan": "c" * 16,
            "status": "stopped",
            "winner": winner,
            "rows": list(KEYS),
        }
        (store.root / "sweeps").mkdir(exist_ok=True)
        (store.root / "sweeps" / f"{name}.json").write_text(json.dumps(record))
    return store.root


def run_failing(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Runs a command that must end with exit code 2, and returns its error."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    output = capsys.readouterr()
    assert "Traceback" not in output.err + output.out
    return " ".join(output.err.split())


def test_the_winner_of_a_sweep(
    storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(
            [
                "export",
                "alpha",
                "--to",
                "safetensors",
                str(tmp_path / "out"),
                "--storage",
                str(storage),
            ]
        )
        == 0
    )
    sentence = f"(so far: the sweep is stopped): row, the best on dev of 3 seeds ({KEYS[1]})"
    assert f"winner of `alpha` {sentence}" in capsys.readouterr().out
    checkpoint = load_checkpoint(tmp_path / "out")
    assert all(
        torch.equal(tensor, toy_hubert(1).state[name])
        for name, tensor in checkpoint.weights.state.items()
    )
    provenance = checkpoint.provenance
    assert provenance["parents"] == ["b" * 16, "d" * 16]
    facts = (provenance["merge"], provenance["alpha"], provenance["by"])
    assert facts == (KEYS[1], 0.25, "speechft_ray merge")
    assert provenance["sweep"]["dev_score"] == 879.0


@pytest.mark.parametrize("run", [KEYS[0], "aa1"])
def test_a_merged_encoder_by_its_fingerprint(storage: Path, tmp_path: Path, run: str) -> None:
    assert (
        main(["export", run, "--to", "s3prl", str(tmp_path / "out.pt"), "--storage", str(storage)])
        == 0
    )
    loaded = load_encoder(tmp_path / "out.pt")
    assert all(
        torch.equal(tensor, toy_hubert(0).state[name]) for name, tensor in loaded.state.items()
    )


@pytest.mark.parametrize(
    ("run", "sentence"),
    [
        (
            "alpa",
            "unknown sweep `alpa`. Did you mean `alpha`? Allowed: alpha, young. Or give the finger",
        ),
        ("aa", f"2 merged encoders begin with `aa`: {KEYS[0]}, {KEYS[1]}. Give more digits."),
        ("bb3", "are no longer in"),
        ("young", "has no merge with a dev score yet"),
        ("../sweeps/alpha", "unknown sweep"),
        ("", "unknown sweep"),
        ("*", "unknown sweep"),
    ],
)
def test_runs_without_an_encoder(
    storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], run: str, sentence: str
) -> None:
    assert sentence in run_failing(
        capsys, "export", run, "--to", "safetensors", tmp_path / "out", "--storage", storage
    )
    assert list(tmp_path.iterdir()) == []


def test_other_errors(storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    existing = tmp_path / "existing"
    existing.write_text("precious")
    assert "exists already" in run_failing(
        capsys, "export", "alpha", "--to", "safetensors", existing, "--storage", storage
    )
    assert "exists already" in run_failing(capsys, "new", "hubert", existing)
    assert existing.read_text() == "precious"
    out, nowhere = tmp_path / "out", tmp_path / "nowhere"
    assert "Did you mean `hf`?" in run_failing(
        capsys, "export", "alpha", "--to", "hff", out, "--storage", storage
    )
    assert "there is no storage folder" in run_failing(
        capsys, "export", "alpha", "--to", "hf", out, "--storage", nowhere
    )
    assert "Did you mean `hubert`?" in run_failing(capsys, "new", "huber", out)
    assert "has no parameters" in run_failing(capsys, "new", "fbank", out)
    assert "must be a multiple of 16, but is 50" in run_failing(
        capsys, "new", "hubert", out, "--dim", "50"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["existing"]


def test_new_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    size = ["--layers", "1", "--dim", "16"]
    for name, seed in (("one", "0"), ("same", "0"), ("other", "1")):
        assert (
            main(["new", "wavlm", str(tmp_path / f"{name}.safetensors"), "--seed", seed, *size])
            == 0
        )
    one, same, other = (
        load_encoder(tmp_path / f"{name}.safetensors").state for name in ("one", "same", "other")
    )
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_the_catalogue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPEECHFT_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "160")
    (tmp_path / "encoders").mkdir()
    (tmp_path / "encoders" / "wavlm_base.pt").write_text("")
    assert main(["encoders"]) == 0
    lines = {
        line.split()[0]: line.split()
        for line in capsys.readouterr().out.splitlines()
        if line.strip()
    }
    assert lines["tiny_hubert"][1:3] == ["hubert", "yes"]
    assert lines["wavlm_base"][1:5] == ["wavlm", "0.4", "GB", "yes"]
    assert lines["wav2vec2_base"][1:5] == ["wav2vec2", "0.4", "GB", "no"]


def test_a_sweep_whose_name_looks_like_a_fingerprint(tmp_path: Path, storage: Path) -> None:
    """The name takes precedence."""
    store = Store(tmp_path)
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "aa.json").write_text((storage / "sweeps" / "alpha.json").read_text())
    assert find_merged_encoder(store, "aa").fingerprint == KEYS[1]
