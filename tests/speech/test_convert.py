"""The verbs inspect and convert, and the source of the configuration in each format."""

from __future__ import annotations

import argparse
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from speechft_ray.cli import main
from speechft_ray.core.errors import UserError
from speechft_ray.speech.checkpoints._parameters import compute_shapes
from speechft_ray.speech.checkpoints._plain import resolve_references, to_plain_data
from speechft_ray.speech.checkpoints.base import FORMATS
from speechft_ray.speech.checkpoints.convert import convert
from speechft_ray.speech.checkpoints.hf import SIDE
from speechft_ray.speech.checkpoints.load import load_checkpoint, weights_fingerprint
from speechft_ray.speech.checkpoints.s3prl_downstream import match_published
from speechft_ray.speech.encoders.base import FAMILIES, EncoderWeights
from tests.speech.toy_models import toy_encoder

PROVENANCE = {"by": "a test", "parents": ["feed", "beef"]}


@pytest.fixture
def fairseq_file(tmp_path: Path) -> Path:
    FORMATS.get("fairseq").write(tmp_path / "hubert.pt", toy_encoder("hubert"), PROVENANCE)
    return tmp_path / "hubert.pt"


def write_downstream(path: Path, weights: EncoderWeights, **args: Any) -> Path:
    """Writes what s3prl's runner saves of a training with a trainable upstream."""
    upstream = OrderedDict((f"model.{name}", tensor) for name, tensor in weights.state.items())
    head = {"projector.weight": torch.zeros(3, 4)}
    content = {
        "Optimizer": {"state": {}},
        "Step": 7,
        "Epoch": 1,
        "Args": argparse.Namespace(**args),
        "Config": {"runner": {}},
    }
    torch.save({**content, "Upstream": upstream, "Downstream": head, "Featurizer": head}, path)
    return path


def test_the_command_line_converts_and_prints(
    fairseq_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "folder"
    assert main(["convert", str(fairseq_file), "--to", "hf", str(out)]) == 0
    output = capsys.readouterr().out
    assert "fairseq, hubert, " in output
    assert SIDE in output
    assert f"{out}: hf, " in output
    assert weights_fingerprint(load_checkpoint(out).weights) == weights_fingerprint(
        toy_encoder("hubert")
    )
    assert main(["convert", str(fairseq_file), "--to", "hf", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["convert", str(fairseq_file), "--to", "onnx", str(tmp_path / "x")]) == 2
    assert "Allowed: fairseq, hf, s3prl, s3prl-downstream, safetensors" in capsys.readouterr().err
    assert main(["convert", "fbank", "--to", "s3prl", str(tmp_path / "x")]) == 2
    assert "without parameters" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("family", "front_end"),
    [("hubert", "feature_extractor."), ("decoar2", "freezing the front end")],
)
def test_inspect_says_what_it_is(
    family: str,
    front_end: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    weights = toy_encoder(family, large=family == "hubert")
    FORMATS.get("s3prl").write(tmp_path / "x.pt", weights, PROVENANCE)
    assert main(["inspect", str(tmp_path / "x.pt")]) == 0
    output = capsys.readouterr().out
    count = sum(tensor.numel() for tensor in weights.state.values())
    for words in (
        FAMILIES.get(family).title,
        "s3prl upstream checkpoint",
        f"{count:,} parameters in {len(weights.state)} tensors",
        "2 of 16 dimensions, 2 heads",
        "3, one frame per 20 ms",
        "before each block" if family == "hubert" else "after each block",
        "zero mean and unit variance" if family == "hubert" else "taken as it is",
        front_end,
        "feed, beef",
        weights_fingerprint(weights),
        "safetensors" if family == "hubert" else "not fairseq, hf",
    ):
        assert words in output, words


def test_inspect_describes_an_encoder_that_it_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = toy_encoder("wavlm")
    state = {
        name: tensor for name, tensor in weights.state.items() if name != "encoder.layer_norm.bias"
    }
    torch.save({**weights.config, "model": state}, tmp_path / "x.pt")
    assert main(["inspect", str(tmp_path / "x.pt")]) == 2
    output = capsys.readouterr()
    assert "WavLM" in output.out
    assert "encoder.layer_norm.bias is missing" in output.err


def test_force_replaces_what_we_wrote_and_nothing_else(fairseq_file: Path, tmp_path: Path) -> None:
    for to, out in (("hf", tmp_path / "folder"), ("safetensors", tmp_path / "one.safetensors")):
        convert(fairseq_file, to, out)
        FORMATS.get("s3prl").write(tmp_path / f"other-{to}.pt", toy_encoder("hubert", seed=5), {})
        convert(tmp_path / f"other-{to}.pt", to, out, force=True)
        assert weights_fingerprint(load_checkpoint(out).weights) == weights_fingerprint(
            toy_encoder("hubert", seed=5)
        )
    convert(fairseq_file, "s3prl", tmp_path / "folder", force=True)  # a file where a folder was
    assert (tmp_path / "folder").is_file()
    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years of work")
    link = tmp_path / "link"
    link.symlink_to(precious)
    for out, words in ((precious, "other things in it, first `thesis.tex`"), (link, "is a link")):
        with pytest.raises(UserError, match=words):
            convert(fairseq_file, "hf", out, force=True)
    assert (precious / "thesis.tex").read_text() == "years of work"
    assert {file.name for file in tmp_path.iterdir() if file.name.startswith(".")} == set()


def test_an_encoder_that_cannot_be_read_leaves_the_old_one(
    fairseq_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "one.safetensors"
    convert(fairseq_file, "safetensors", out)
    before = out.read_bytes()
    fairseq_file.write_bytes(fairseq_file.read_bytes()[:-500])
    with pytest.raises(UserError, match="damaged"):
        convert(fairseq_file, "safetensors", out, force=True)
    assert out.read_bytes() == before


def test_a_rename_that_fails_puts_the_old_folder_back(
    fairseq_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(fairseq_file, "hf", tmp_path / "folder")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if target == tmp_path / "folder" and not self.name.endswith(".old"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="Input/output"):
        convert(fairseq_file, "hf", tmp_path / "folder", force=True)
    assert weights_fingerprint(load_checkpoint(tmp_path / "folder").weights) == weights_fingerprint(
        toy_encoder("hubert")
    )
    assert {file.name for file in tmp_path.iterdir()} == {"hubert.pt", "folder"}


@pytest.mark.parametrize("family", ["wavlm", "decoar2"])
def test_a_format_that_cannot_hold_a_family_says_which_can(family: str, tmp_path: Path) -> None:
    FORMATS.get("safetensors").write(tmp_path / "x", toy_encoder(family), {})
    with pytest.raises(
        UserError,
        match=r"--to fairseq cannot hold a .* Allowed for this encoder: (hf, )?s3prl, s3prl-downs",
    ):
        convert(tmp_path / "x", "fairseq", tmp_path / "y")
    assert not (tmp_path / "y").exists()


def test_where_a_downstream_checkpoint_takes_its_configuration_from(
    tmp_path: Path,
) -> None:
    base, tuned = toy_encoder("wav2vec2"), toy_encoder("wav2vec2", seed=3)
    FORMATS.get("fairseq").write(tmp_path / "base.pt", base, {})
    alone = write_downstream(
        tmp_path / "alone.ckpt", tuned, upstream_ckpt=str(tmp_path / "gone.pt")
    )
    named = write_downstream(
        tmp_path / "named.ckpt", tuned, upstream_ckpt=str(tmp_path / "base.pt")
    )
    with pytest.raises(UserError, match="--config-from FILE"):
        load_checkpoint(alone)
    for path, words, config_from in (
        (alone, "as you said", tmp_path / "base.pt"),
        (named, "Args.upstream_ckpt", None),
    ):
        checkpoint = load_checkpoint(path, config_from)
        assert weights_fingerprint(checkpoint.weights) == weights_fingerprint(tuned)
        assert any(words in note for note in checkpoint.notes)
        omissions = "left out: `Downstream`, `Featurizer`, `Optimizer`"
        assert any(omissions in note for note in checkpoint.notes)
    with pytest.raises(UserError, match="holds its own configuration"):
        load_checkpoint(tmp_path / "base.pt", tmp_path / "base.pt")
    with pytest.raises(UserError, match="there is no checkpoint"):
        load_checkpoint(alone, tmp_path / "gone.pt")


def test_downstream_checkpoints_that_name_each_other_end(tmp_path: Path) -> None:
    one, two = tmp_path / "one.ckpt", tmp_path / "two.ckpt"
    write_downstream(one, toy_encoder("hubert"), upstream_ckpt=str(two))
    write_downstream(two, toy_encoder("hubert"), upstream_ckpt=str(one))
    with pytest.raises(UserError, match="downstream checkpoint as well"):
        load_checkpoint(one)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("family", ["hubert", "wav2vec2", "wavlm", "decoar2"])
def test_published_sizes_are_told_apart(family: str, large: bool) -> None:
    """Every name and shape must match. The tensors have no memory: no value is read."""
    part = FAMILIES.get(family)
    assert part.example_config is not None
    config = part.example_config(*((24, 1024, True) if large else (12, 768, False)))
    sizes = compute_shapes(family, config)
    assert sizes is not None
    state = {name: torch.zeros(()).expand(size) for name, size in sizes.items()}
    ((matching_family, matching_config),) = match_published(state)
    assert matching_family == family
    assert part.describe(matching_config) == part.describe(config)
    del state["encoder.layers.3.fc1.bias"]
    assert match_published(state) == []


def test_omegaconf_containers_of_fairseq_are_read(tmp_path: Path) -> None:
    """As older versions of fairseq saved them, with references and values that were never set."""
    weights = toy_encoder("hubert", large=True)
    model = {**weights.config["model_cfg"], "label_rate": "${task.label_rate}"}
    task = {**weights.config["task_cfg"], "label_rate": 50.0, "labels": ["km"], "data": "???"}
    config = OmegaConf.create({"model": model, "task": task, "common": {"seed": "${env:HOME}"}})
    words = weights.config["dictionaries_symbols"]
    content = {
        "args": None,
        "cfg": config,
        "model": dict(weights.state),
        "task_state": {"dictionaries": words},
    }
    torch.save(content, tmp_path / "omega.pt")
    loaded = load_checkpoint(tmp_path / "omega.pt").weights.config
    assert loaded["model_cfg"] == {**model, "label_rate": 50.0}
    assert loaded["task_cfg"] == {key: value for key, value in task.items() if key != "data"}
    assert FAMILIES.get("hubert").describe(loaded) == FAMILIES.get("hubert").describe(
        weights.config
    )


def test_only_references_to_single_values_are_resolved() -> None:
    config = {
        "a": "${b.c}",
        "b": {"c": 3, "d": "${b}"},
        "e": "${env:HOME}",
        "f": "${a.b.c.d.e.f.g}",
        "g": ["${b.c}", "???"],
    }
    assert resolve_references(config) == {**config, "a": 3, "g": [3, "???"]}
    assert to_plain_data(config, "x") == config


def test_a_file_that_another_tool_changed_overrides_our_data(tmp_path: Path) -> None:
    """Our copy of the configuration counts only while the rest of the file agrees with it."""
    weights = toy_encoder("wav2vec2")
    FORMATS.get("s3prl").write(tmp_path / "x.pt", weights, PROVENANCE)
    content = torch.load(tmp_path / "x.pt", weights_only=True)
    content["task_cfg"]["normalize"] = True
    torch.save(content, tmp_path / "y.pt")
    checkpoint = load_checkpoint(tmp_path / "y.pt")
    assert checkpoint.weights.config["task_cfg"]["normalize"] is True
    assert checkpoint.provenance == {}


@pytest.mark.parametrize("name", ["s3prl", "fairseq", "s3prl-downstream", "hf", "safetensors"])
def test_files_are_mapped_not_copied(name: str, tmp_path: Path) -> None:
    FORMATS.get(name).write(tmp_path / "x", toy_encoder("hubert"), {})
    checkpoint = load_checkpoint(tmp_path / "x")
    regions = Path("/proc/self/maps")
    if not regions.exists():
        pytest.skip("needs /proc/self/maps")
    spans = [
        line.split()[0].split("-")
        for line in regions.read_text().splitlines()
        if str(tmp_path / "x") in line
    ]
    tensor = checkpoint.weights.state["encoder.layers.1.fc1.weight"]
    assert any(int(start, 16) <= tensor.data_ptr() < int(end, 16) for start, end in spans)


def test_a_hub_cache_may_be_given_as_it_is(tmp_path: Path) -> None:
    """The files of a snapshot are links into `blobs` beside it."""
    blobs, snapshot = tmp_path / "models--x/blobs", tmp_path / "models--x/snapshots/0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    FORMATS.get("hf").write(tmp_path / "model", toy_encoder("wavlm"), {})
    for index, file in enumerate((tmp_path / "model").iterdir()):
        file.rename(blobs / str(index))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(index))
    assert weights_fingerprint(load_checkpoint(snapshot).weights) == weights_fingerprint(
        toy_encoder("wavlm")
    )


def test_without_a_projection_transformers_gets_the_identity(tmp_path: Path) -> None:
    part = FAMILIES.get("hubert")
    config = json.loads(json.dumps(toy_encoder("hubert").config))
    config["model_cfg"]["conv_feature_layers"] = "[(16,10,5)] + [(16,3,2)] * 4 + [(16,2,2)] * 2"
    assert part.init_weights is not None
    weights = part.init_weights(config, 0)
    assert "post_extract_proj.weight" not in weights.state
    FORMATS.get("hf").write(tmp_path / "model", weights, {})
    assert weights_fingerprint(load_checkpoint(tmp_path / "model").weights) == weights_fingerprint(
        weights
    )
    (tmp_path / "model" / SIDE).unlink()
    assert "post_extract_proj.weight" not in load_checkpoint(tmp_path / "model").weights.state


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pos_conv_depth": 2}, "pos_conv_depth"),
        ({"activation_fn": "gelu_accurate"}, "activation_fn"),
    ],
)
def test_what_transformers_does_not_have_is_reported(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    part = FAMILIES.get("wav2vec2")
    config = json.loads(json.dumps(toy_encoder("wav2vec2").config))
    config["model_cfg"] |= changes
    assert part.init_weights is not None
    with pytest.raises(UserError, match=words):
        FORMATS.get("hf").write(tmp_path / "x", part.init_weights(config, 0), {})
    assert list(tmp_path.iterdir()) == []
