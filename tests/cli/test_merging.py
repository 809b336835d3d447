"""The commands speechft merge and speechft diff."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from speechft_ray.cli import main
from speechft_ray.merging.algebra import merge
from speechft_ray.merging.base import METHODS
from speechft_ray.speech.checkpoints.base import FORMATS
from speechft_ray.speech.checkpoints.load import load_checkpoint
from speechft_ray.speech.checkpoints.safetensors_dir import (
    read_encoder,
    write_encoder,
)
from speechft_ray.speech.encoders.base import EncoderWeights
from tests.speech.toy_models import toy_hubert

StateDict = dict[str, torch.Tensor]


def make_state(seed: int) -> StateDict:
    source = torch.Generator().manual_seed(seed)
    shapes = {
        "front.weight": (4, 1, 5),
        "encoder.layers.0.fc.weight": (6, 4),
        "encoder.layers.1.fc.weight": (6, 4),
    }
    return {key: torch.randn(shape, generator=source) for key, shape in shapes.items()}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for index, name in enumerate(("base", "a", "b")):
        save_file(make_state(index), f"{name}.safetensors")
    return tmp_path


MERGE = [
    "--base",
    "base.safetensors",
    "--donor",
    "a.safetensors",
    "--donor",
    "b.safetensors",
    "--out",
    "out.safetensors",
]


def test_plain_files_are_merged(folder: Path) -> None:
    options = [
        "--param",
        "density=0.5",
        "--param",
        "weights=[2, 1]",
        "--param",
        "elect=count",
        "--alpha",
        "0.5",
    ]
    assert main(["merge", "ties", *MERGE, *options]) == 0
    params = {"density": 0.5, "weights": [2, 1], "elect": "count"}
    expected = merge("ties", params, make_state(0), [make_state(1), make_state(2)], 0.5)
    actual = load_file("out.safetensors")
    assert all(torch.equal(actual[key], tensor) for key, tensor in expected.items()) and set(
        actual
    ) == set(expected)


def test_encoders_are_merged_into_an_encoder(tmp_path: Path) -> None:
    encoders = [toy_hubert(seed) for seed in range(3)]
    for index, encoder in enumerate(encoders):
        write_encoder(tmp_path / f"{index}.safetensors", encoder, {"by": "a test"})
    files = [str(tmp_path / f"{index}.safetensors") for index in range(3)]
    out = tmp_path / "merged"
    assert (
        main(
            [
                "merge",
                "linear",
                "--base",
                files[0],
                "--donor",
                files[1],
                "--donor",
                files[2],
                "--out",
                str(out),
            ]
        )
        == 0
    )
    actual = read_encoder(out)
    assert (actual.family, actual.config) == (encoders[0].family, encoders[0].config)
    assert load_checkpoint(out).provenance["method"] == "linear"
    key = next(key for key in actual.state if "fc1.weight" in key)
    torch.testing.assert_close(
        actual.state[key], (encoders[1].state[key] + encoders[2].state[key]) / 2
    )


def test_families_do_not_mix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hubert = toy_hubert()
    write_encoder(tmp_path / "a.safetensors", hubert, {})
    other = EncoderWeights(family="wav2vec2", config=hubert.config, state=hubert.state)
    write_encoder(tmp_path / "b.safetensors", other, {})
    files = [str(tmp_path / name) for name in ("a.safetensors", "b.safetensors", "out.safetensors")]
    assert (
        main(["merge", "linear", "--base", files[0], "--donor", files[1], "--out", files[2]]) == 2
    )
    assert "merge models of one family" in capsys.readouterr().err
    assert not Path(files[2]).exists()


def make_arguments(method: str, *more: str, **files: str) -> list[str]:
    """Returns the arguments of a merge with other files, by the stem of those of ``MERGE``."""
    words = {f"{stem}.safetensors": file for stem, file in files.items()}
    return ["merge", method, *(words.get(word, word) for word in MERGE), *more]


LONE = MERGE[:4] + MERGE[6:]
BAD: dict[str, tuple[list[str], str]] = {
    "unknown method": (make_arguments("tie"), "Did you mean `ties`?"),
    "unknown parameter": (
        make_arguments("ties", "--param", "densty=0.5"),
        "Did you mean `density`?",
    ),
    "density 0": (
        make_arguments("ties", "--param", "density=0"),
        "density: must be greater than 0",
    ),
    "density 2": (
        make_arguments("ties", "--param", "density=2"),
        "density: must be at most 1",
    ),
    "no value": (make_arguments("ties", "--param", "density"), "write NAME=VALUE"),
    "given twice": (
        make_arguments("ties", "--param", "density=1", "--param", "density=0.5"),
        "given twice",
    ),
    "code as a value": (
        make_arguments("ties", "--param", "density=__import__('os')"),
        "must be a number",
    ),
    "alpha": (make_arguments("linear", "--alpha", "1.5"), "must be within [0, 1]"),
    "two donors are needed": (["merge", "model_stock", *LONE], "must be at least 2"),
    "base is its donor": (
        make_arguments("linear", a="./base.safetensors"),
        "donor 1 is the base itself",
    ),
    "a donor twice": (
        make_arguments("linear", b="a.safetensors"),
        "donor 2 is donor 1 once more",
    ),
    "out is an input": (
        make_arguments("linear", "--force", out="a.safetensors"),
        "never changes",
    ),
    "out exists": (
        make_arguments("linear", out="there.safetensors"),
        "--force to replace it",
    ),
    "no folder": (make_arguments("linear", out="no/out.safetensors"), "the folder of no/out"),
    "another ending": (make_arguments("linear", out="out.bin"), "must end in .safetensors"),
    "no such donor": (make_arguments("linear", b="c.safetensors"), "is not a safetensors file"),
    "no such base": (make_arguments("linear", base="c.safetensors"), "c.safetensors"),
    "another size": (
        make_arguments("linear", b="small.safetensors"),
        "1 differ in shape or kind",
    ),
    "NaN": (make_arguments("linear", b="nan.safetensors"), "donor 2 has NaN or infinite values"),
    "statistics": (make_arguments("fisher"), "gather: [fisher]"),
    "nothing given": (["merge", "linear"], "`speechft merge --list` shows the methods"),
    "diff of others": (
        ["diff", "base.safetensors", "small.safetensors"],
        "the second model does not fit",
    ),
    "no folder for a picture": (
        ["diff", "base.safetensors", "a.safetensors", "--picture", "no/x.png"],
        "does not exist",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_nothing_is_written(
    case: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({**make_state(2), "front.weight": torch.zeros(2)}, "small.safetensors")
    save_file(
        {**make_state(2), "front.weight": torch.full((4, 1, 5), float("nan"))}, "nan.safetensors"
    )
    save_file(make_state(3), "there.safetensors")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    arguments, words = BAD[case]
    assert main(arguments) == 2
    output = capsys.readouterr().err
    assert words in output and "Traceback" not in output and len(output.strip().splitlines()) <= 2
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_small_disk_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10})())
    assert main(["merge", "linear", *MERGE]) == 2
    assert "free some space" in capsys.readouterr().err
    assert not Path("out.safetensors").exists()


def test_force_replaces(folder: Path) -> None:
    Path("out.safetensors").write_text("old")
    assert main(["merge", "linear", *MERGE, "--force"]) == 0
    assert set(load_file("out.safetensors")) == set(make_state(0))


def test_the_list_names_every_method_and_parameter(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert main(["merge", "--list"]) == 0
    output = capsys.readouterr().out
    for name, method in METHODS.items():
        line = next(line for line in output.splitlines() if f" {name} " in line)
        own = set(method.params.model_fields) - {"scale", "precision", "pos_conv"}
        assert all(f"{field}=" in line for field in own), name


def test_diff_measures_by_layer(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    other = make_state(0)
    other["encoder.layers.1.fc.weight"][0] *= 2
    save_file(other, "other.safetensors")
    assert main(["diff", "base.safetensors", "other.safetensors", "--picture", "x.png"]) == 0
    lines = {
        line.strip().split("  ")[0]: line.split()
        for line in capsys.readouterr().out.splitlines()
        if line.strip()
    }
    start = make_state(0)["encoder.layers.1.fc.weight"].double()
    assert lines["layer 0"][2:] == ["24", "0", "0.000%", "1.000000", "0.0%"]
    distance = float(start[0].norm())
    cosine = float(
        torch.nn.functional.cosine_similarity(
            start.flatten(), other["encoder.layers.1.fc.weight"].double().flatten(), 0
        )
    )
    measured = [
        "24",
        f"{distance:.4g}",
        f"{distance / float(start.norm()):.3%}",
        f"{cosine:.6f}",
        f"{4 / 24:.1%}",
    ]
    assert lines["layer 1"][2:] == measured
    assert lines["all"][1] == str(20 + 24 + 24)
    assert Path("x.png").read_bytes().startswith(b"\x89PNG")


def write_two_encoders(folder: Path, **changes: object) -> list[str]:
    """Writes a HuBERT and one of other options with other weights; returns the arguments of a
    merge."""
    base, donor = toy_hubert(), toy_hubert(1, **changes)
    write_encoder(folder / "base.safetensors", base, {})
    write_encoder(folder / "donor.safetensors", donor, {})
    files = [str(folder / name) for name in ("base.safetensors", "donor.safetensors")]
    return ["--base", files[0], "--donor", files[1], "--out", str(folder / "out.safetensors")]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"layer_norm_first": False}, "`layer_norm_first` is false, not true"),
        ({"extractor_mode": "layer_norm"}, "`extractor_mode` is layer_norm, not default"),
        ({"conv_bias": True}, "`conv_bias` is true, not false"),
        ({"activation_fn": "relu"}, "`activation_fn` is relu, not gelu"),
        ({"encoder_attention_heads": 4}, "`encoder_attention_heads` is 4, not 2"),
    ],
)
def test_another_network_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, object], sentence: str
) -> None:
    arguments = write_two_encoders(tmp_path, **changes)
    assert main(["merge", "linear", *arguments]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()
    assert main(["diff", arguments[1], arguments[3]]) == 2
    assert sentence in capsys.readouterr().err


def test_other_sizes_are_told_by_names_and_shapes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = write_two_encoders(tmp_path, encoder_layers=3, layer_norm_first=False)
    assert main(["merge", "linear", *arguments]) == 2
    assert "does not fit the base: it has 16 that the base lacks" in capsys.readouterr().err


def test_another_normalisation_is_said_and_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = write_two_encoders(tmp_path, dropout=0.3)
    donor = toy_hubert(1)
    task = {**donor.config["task_cfg"], "normalize": True}
    config = {**donor.config, "task_cfg": task}
    write_encoder(
        Path(arguments[3]), EncoderWeights(family="hubert", config=config, state=donor.state), {}
    )
    note = (
        "donor 1 brings waveforms to zero mean and unit variance, the base takes waveforms as they "
        "are; the merge does it as the base."
    )
    assert main(["merge", "linear", *arguments]) == 0
    assert f"note: merge: {note}" in capsys.readouterr().err
    merged = load_checkpoint(tmp_path / "out.safetensors")
    assert merged.provenance["notes"] == [note]
    assert merged.weights.config["task_cfg"]["normalize"] is False
    assert main(["diff", arguments[1], arguments[3]]) == 0
    assert "the second model brings waveforms" in capsys.readouterr().err


def test_plain_files_of_transformers_folders_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, changes in (("base", {}), ("donor", {"layer_norm_first": False})):
        FORMATS.get("hf").write(tmp_path / name, toy_hubert(**changes), {})
        (tmp_path / name / "speechft_ray.safetensors").unlink()
    files = [str(tmp_path / name / "model.safetensors") for name in ("base", "donor")]
    out = str(tmp_path / "out.safetensors")
    assert main(["merge", "linear", "--base", files[0], "--donor", files[1], "--out", out]) == 2
    assert "`layer_norm_first` is false, not true" in capsys.readouterr().err
    assert main(["diff", *files]) == 2


def test_what_a_loader_guesses_is_printed_by_merge_and_diff(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seed in (("base", 0), ("donor", 1)):
        FORMATS.get("hf").write(tmp_path / name, toy_hubert(seed), {})
        for file in ("speechft_ray.safetensors", "processor_config.json"):
            (tmp_path / name / file).unlink()
    (tmp_path / "donor" / "preprocessor_config.json").unlink()
    base, donor = str(tmp_path / "base"), str(tmp_path / "donor")
    guess = f"note: {donor}: waveforms are taken as not normalised: there is neither"
    out = str(tmp_path / "out.safetensors")
    assert main(["merge", "linear", "--base", base, "--donor", donor, "--out", out]) == 0
    assert guess in capsys.readouterr().err
    assert main(["diff", base, donor]) == 0
    assert guess in capsys.readouterr().err


def test_diff_leaves_out_what_only_one_model_has_of_pre_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    FORMATS.get("s3prl").write(tmp_path / "whole.pt", toy_hubert(), {})
    FORMATS.get("hf").write(tmp_path / "model", toy_hubert(), {})
    (tmp_path / "model" / "speechft_ray.safetensors").unlink()
    files = [str(tmp_path / "whole.pt"), str(tmp_path / "model")]
    for pair in (files, files[::-1]):
        assert main(["diff", *pair]) == 0
        output = capsys.readouterr()
        assert "only pre-training uses are left out" in output.err and "final_proj" in output.err
        assert "final_proj" not in output.out
    assert main(["diff", files[0], files[0]]) == 0
    assert "final_proj" in capsys.readouterr().out
    write_encoder(tmp_path / "deep.safetensors", toy_hubert(encoder_layers=3), {})
    assert main(["diff", files[0], str(tmp_path / "deep.safetensors")]) == 2
    error = capsys.readouterr().err
    assert "does not fit the first model" in error and "Merge" not in error


def test_a_mask_embedding_that_was_trained_is_merged(tmp_path: Path) -> None:
    base = toy_hubert()
    state = {name: tensor + 1 for name, tensor in base.state.items()}
    write_encoder(tmp_path / "base.safetensors", base, {})
    donor = EncoderWeights(family="hubert", config=base.config, state=state)
    write_encoder(tmp_path / "donor.safetensors", donor, {})
    files = [str(tmp_path / f"{name}.safetensors") for name in ("base", "donor", "out")]
    words = ["--base", files[0], "--donor", files[1], "--out", files[2], "--alpha", "0.25"]
    assert main(["merge", "linear", *words]) == 0
    merged = read_encoder(Path(files[2])).state
    torch.testing.assert_close(merged["mask_emb"], base.state["mask_emb"] + 0.25)
    assert torch.equal(merged["final_proj.weight"], base.state["final_proj.weight"])
