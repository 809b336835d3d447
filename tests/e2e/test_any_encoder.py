"""Every family end to end: written by ``new``, swept by the launch script, exported, loaded by
transformers."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from speechft_ray.cli import main
from speechft_ray.speech.checkpoints.load import load_encoder
from speechft_ray.speech.encoders.base import FAMILIES
from tests.e2e.small_world import REPOSITORY

FAMILIES_WITH_WEIGHTS = [name for name, family in FAMILIES.items() if family.init_weights]
MODELS = {"hubert": "HubertModel", "wav2vec2": "Wav2Vec2Model", "wavlm": "WavLMModel"}

SPACE: dict[str, Any] = {
    "name": "any",
    "finetune": [
        {
            "name": "phones",
            "objectives": [
                {
                    "head": "frame",
                    "corpus": {
                        "options": {
                            "part": "phones",
                            "speakers": 2,
                            "train": 8,
                            "dev": 2,
                            "test": 0,
                        }
                    },
                    "column": "phones",
                    "batch_size": 4,
                },
            ],
            "updates": 4,
            "peak_learning_rate": 1e-3,
            "validate_every_updates": 2,
        }
    ],
    "merge": [{"alpha": 0.25}],
    "evaluate": [
        {
            "task": "pr",
            "corpus": {"options": {"part": "pr", "speakers": 2, "train": 8, "dev": 4, "test": 4}},
            "updates": 6,
            "learning_rate": 1e-2,
            "batch_size": 4,
        }
    ],
    "score": {"zero": "measured", "topline": {"pr.per": 0}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One storage folder for all families: corpora and the FBank baseline are computed once."""
    return tmp_path_factory.mktemp("any")


def launch(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """Runs ``launch/sweep_alpha.py`` in this process; returns its exit code."""
    script = REPOSITORY / "launch" / "sweep_alpha.py"
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_info:
        runpy.run_path(str(script), run_name="__main__")
    return int(exit_info.value.code or 0)


@pytest.mark.parametrize("family", FAMILIES_WITH_WEIGHTS)
def test_new_sweep_export_load(
    family: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start, storage, out = folder / family, folder / "runs", folder / f"{family}-out"
    space = folder / f"{family}.yaml"
    space.write_text(json.dumps({**SPACE, "name": family}, indent=1))
    assert main(["new", family, str(start), "--layers", "2", "--dim", "32"]) == 0
    options = (
        "--space",
        space,
        "--storage",
        storage,
        "--report",
        folder / "report",
        "--in-process",
        "--cpu",
    )
    assert launch(monkeypatch, *options, "--encoder", start) == 0
    merge = json.loads((storage / "sweeps" / f"{family}.json").read_text())["winner"]["merge"]
    merged = load_encoder(storage / "merge" / merge / "encoder.safetensors")
    assert any(
        not torch.equal(merged.state[name], tensor)
        for name, tensor in load_encoder(start).state.items()
    )

    capsys.readouterr()
    exit_code = main(["export", family, "--to", "hf", str(out), "--storage", str(storage)])
    if family not in MODELS:
        assert exit_code == 2
        assert "--to hf cannot hold a DeCoAR 2.0" in capsys.readouterr().err
        assert not out.exists()
        out = folder / f"{family}.pt"
        assert main(["export", family, "--to", "s3prl", str(out), "--storage", str(storage)]) == 0
        assert all(
            torch.equal(merged.state[name], tensor)
            for name, tensor in load_encoder(out).state.items()
        )
        return
    assert exit_code == 0
    model = getattr(transformers, MODELS[family]).from_pretrained(out)
    wave = torch.randn(8_000, generator=torch.Generator().manual_seed(0))
    ours = FAMILIES.get(family).build(merged).hidden_states([wave]).states[-1]
    with torch.no_grad():
        theirs = model.eval()(wave[None]).last_hidden_state
    torch.testing.assert_close(theirs, ours.detach(), atol=1e-5, rtol=0)
