"""Malicious and malformed files: each ends in one sentence and exit code 2, runs no code and writes
nothing."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from speechft_ray.cli import main
from speechft_ray.speech.checkpoints.base import FORMATS
from speechft_ray.speech.checkpoints.fairseq import FAIRSEQ
from speechft_ray.speech.checkpoints.hf import HF
from speechft_ray.speech.checkpoints.load import load_checkpoint
from tests.speech.toy_models import toy_config, toy_encoder, toy_hubert

TRAP = "code-was-run"


class Payload:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def make_payload() -> Payload:
    return Payload(os.system, f"touch {TRAP}")


def write_s3prl(path: Path, **changes: Any) -> Path:
    torch.save({**toy_config(), "model_weight": dict(toy_hubert().state), **changes}, path)
    return path


def write_model_config(path: Path, **changes: Any) -> Path:
    """Writes an s3prl checkpoint with another model configuration."""
    return write_s3prl(path, model_cfg=toy_config(**changes)["model_cfg"])


def write_state(edit: Callable[[dict[str, Any]], Any], path: Path) -> Path:
    state: dict[str, Any] = dict(toy_hubert().state)
    edit(state)
    return write_s3prl(path, model_weight=state)


def rezip(path: Path, edit: Callable[[zipfile.ZipFile, list[tuple[str, bytes]]], None]) -> Path:
    """Writes a valid file whose members ``edit`` writes again."""
    write_s3prl(path)
    with zipfile.ZipFile(path) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w") as archive:
        edit(archive, members)
    return path


def cut_file(folder: Path) -> Path:
    path = write_s3prl(folder / "cut.pt")
    path.write_bytes(path.read_bytes()[:-1000])
    return path


def text_as_pt(folder: Path) -> Path:
    path = folder / "hubert.pt"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1136468879\n")
    return path


def fifo(folder: Path) -> Path:
    """Opening it for reading blocks forever."""
    os.mkfifo(folder / "pipe.pt")
    return folder / "pipe.pt"


def pickle_as_safetensors(folder: Path) -> Path:
    return write_s3prl(folder / "hubert.pt").rename(folder / "hubert.safetensors")


def zip_bomb(folder: Path) -> Path:
    def edit(archive: zipfile.ZipFile, members: list[tuple[str, bytes]]) -> None:
        for name, data in members:
            archive.writestr(name, data)
        archive.writestr(
            members[0][0].split("/")[0] + "/data/999", bytes(64 * 2**20), zipfile.ZIP_DEFLATED
        )

    return rezip(folder / "bomb.pt", edit)


def duplicate_member(folder: Path) -> Path:
    def edit(archive: zipfile.ZipFile, members: list[tuple[str, bytes]]) -> None:
        for name, data in members:
            archive.writestr(name, data)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr(members[0][0], pickle.dumps({}, 2))

    return rezip(folder / "two-faced.pt", edit)


def overlapping_members(folder: Path) -> Path:
    """All entries of the zip directory refer to the same bytes: small on disk, large in sum."""
    path = folder / "overlap.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", bytes(2000))
        first = archive.infolist()[0]
        for index in range(50):
            again = zipfile.ZipInfo(f"a/data/{index}")
            again.header_offset, again.CRC = 0, first.CRC
            again.file_size = again.compress_size = 2000
            archive.filelist.append(again)
            archive.NameToInfo[again.filename] = again
    return path


def os_system(folder: Path) -> Path:
    return write_s3prl(folder / "evil.pt", extra=make_payload())


def os_system_legacy(folder: Path) -> Path:
    path = folder / "evil-legacy.pt"
    torch.save(
        {**toy_config(), "extra": make_payload()}, path, _use_new_zipfile_serialization=False
    )
    return path


def claims_terabytes_legacy(folder: Path) -> Path:
    """The format from before torch 1.6 states how much memory to reserve: 2**40 values, not 77."""
    path = folder / "vast.pt"
    torch.save({"model_weight": {"w": torch.zeros(77)}}, path, _use_new_zipfile_serialization=False)
    raw = path.read_bytes()
    assert raw.count(b"KMN") == 1
    path.write_bytes(raw.replace(b"KMN", b"\x8a\x09" + (2**40).to_bytes(9, "little") + b"N"))
    return path


def builtin_eval(folder: Path) -> Path:
    return write_s3prl(
        folder / "eval.pt", extra=Payload(eval, f"__import__('pathlib').Path('{TRAP}').touch()")
    )


def bare_pickle(folder: Path) -> Path:
    path = folder / "bare.pt"
    path.write_bytes(pickle.dumps(make_payload(), 2))
    return path


def conv_is_code(folder: Path) -> Path:
    return write_model_config(
        folder / "conv.pt",
        conv_feature_layers=f"[(8,10,5)] + [open('{TRAP}', 'w') and (8,3,2)] * 6",
    )


def activation_is_code(folder: Path) -> Path:
    return write_model_config(
        folder / "activation.pt", activation_fn=f"__import__('os').system('touch {TRAP}')"
    )


def hubert_as_wav2vec2(folder: Path) -> Path:
    wav2vec2 = toy_encoder("wav2vec2")
    torch.save(
        {**wav2vec2.config, "model_weight": dict(toy_encoder("hubert").state)}, folder / "wrong.pt"
    )
    return folder / "wrong.pt"


def missing_layer(folder: Path) -> Path:
    def edit(state: dict[str, Any]) -> None:
        for name in [name for name in state if name.startswith("encoder.layers.1.")]:
            del state[name]

    return write_state(edit, folder / "short.pt")


def no_config(folder: Path) -> Path:
    (folder / "model").mkdir()
    save_file({"weight": torch.zeros(2)}, folder / "model" / "model.safetensors")
    return folder / "model"


def fine_tuned_ctc(folder: Path) -> Path:
    path = folder / "ctc.pt"
    FAIRSEQ.write(path, toy_encoder("hubert"), {})
    content = {
        "args": None,
        "cfg": {"model": {"_name": "hubert_ctc"}, "task": {}},
        "task_state": {},
    }
    state = {
        f"w2v_encoder.w2v_model.{name}": tensor
        for name, tensor in toy_encoder("hubert").state.items()
    }
    state |= {
        "w2v_encoder.proj.weight": torch.zeros(32, 16),
        "w2v_encoder.proj.bias": torch.zeros(32),
    }
    path.unlink()
    torch.save({**content, "model": state}, path)
    return path


def other_fairseq_model(folder: Path) -> Path:
    content = {
        "args": None,
        "cfg": {"model": {"_name": "data2vec_audio"}, "task": {}},
        "model": dict(toy_hubert().state),
    }
    torch.save(content, folder / "data2vec.pt")
    return folder / "data2vec.pt"


def million_layers(folder: Path) -> Path:
    return write_model_config(folder / "deep.pt", encoder_layers=10**9)


def enormous_width(folder: Path) -> Path:
    return write_model_config(
        folder / "wide.pt", encoder_embed_dim=2**40, encoder_attention_heads=2
    )


def enormous_repeat(folder: Path) -> Path:
    return write_model_config(folder / "long.pt", conv_feature_layers="[(8,10,5)] * 1000000000")


def nan_weights(folder: Path) -> Path:
    def edit(state: dict[str, Any]) -> None:
        state["encoder.layer_norm.bias"] = torch.full((16,), float("nan"))

    return write_state(edit, folder / "diverged.pt")


def claims_more_than_it_holds(folder: Path) -> Path:
    def edit(state: dict[str, Any]) -> None:
        state["encoder.layer_norm.bias"] = torch.zeros(1).expand(10**12)

    return write_state(edit, folder / "expanded.pt")


def meta_tensor(folder: Path) -> Path:
    def edit(state: dict[str, Any]) -> None:
        state["encoder.layer_norm.bias"] = torch.zeros(16, device="meta")

    return write_state(edit, folder / "meta.pt")


def name_with_newline(folder: Path) -> Path:
    def edit(state: dict[str, Any]) -> None:
        state["all is well\nspeechft: everything was converted"] = torch.zeros(2)

    return write_state(edit, folder / "liar.pt")


def namespace_with_tricks(folder: Path) -> Path:
    args = argparse.Namespace(arch="wav2vec2", task="audio_pretraining")
    vars(args).update(
        {"__class__": "os", "__reduce__": "x", "__dict__": {}, "state": {}, "encoder_layers": [1]}
    )
    torch.save(
        {"args": args, "cfg": None, "model": dict(toy_encoder("wav2vec2").state)},
        folder / "namespace.pt",
    )
    return folder / "namespace.pt"


def config_with_objects(folder: Path) -> Path:
    return write_s3prl(folder / "object.pt", task_cfg={"normalize": torch.zeros(1)})


def config_contains_itself(folder: Path) -> Path:
    loop: dict[str, Any] = {"encoder_layers": 2}
    loop["again"] = loop
    return write_s3prl(folder / "loop.pt", model_cfg=loop)


def billion_laughs(folder: Path) -> Path:
    laugh: list[Any] = ["ha"] * 10
    for _ in range(12):
        laugh = [laugh] * 10
    return write_s3prl(folder / "laughs.pt", model_cfg={"joke": laugh})


def huge_header(folder: Path) -> Path:
    path = folder / "header.safetensors"
    path.write_bytes(struct.pack("<Q", 2**60) + b'{"a":')
    return path


def bit_flip(folder: Path) -> Path:
    path = folder / "flipped.safetensors"
    FORMATS.get("safetensors").write(path, toy_encoder("hubert"), {})
    raw = bytearray(path.read_bytes())
    raw[-7] ^= 1
    path.write_bytes(bytes(raw))
    return path


def write_hf(folder: Path) -> Path:
    HF.write(folder / "model", toy_encoder("hubert"), {})
    return folder / "model"


def write_hf_config(folder: Path, **changes: Any) -> Path:
    model = write_hf(folder)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **changes}))
    return model


def hf_of_another_family(folder: Path) -> Path:
    return write_hf_config(folder, model_type="whisper")


def hf_config_of_wrong_types(folder: Path) -> Path:
    return write_hf_config(folder, conv_dim="512", hidden_size={"a": 1})


def hf_text_width(folder: Path) -> Path:
    return write_hf_config(folder, hidden_size="sixteen")


def hf_config_is_no_json(folder: Path) -> Path:
    model = write_hf(folder)
    (model / "config.json").write_text("[" * 100_000)
    return model


def hf_bit_flip(folder: Path) -> Path:
    model = write_hf(folder)
    raw = bytearray((model / "model.safetensors").read_bytes())
    raw[-5] ^= 4
    (model / "model.safetensors").write_bytes(bytes(raw))
    return model


def write_sharded_hf(folder: Path, place: str) -> Path:
    model = write_hf(folder)
    state = load_file(model / "model.safetensors")
    (model / "model.safetensors").rename(folder / "outside.safetensors")
    (model / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(state, place)})
    )
    return model


def index_leaves_folder(folder: Path) -> Path:
    return write_sharded_hf(folder, "../outside.safetensors")


def index_follows_link(folder: Path) -> Path:
    model = write_sharded_hf(folder, "piece.safetensors")
    (model / "piece.safetensors").symlink_to(folder / "outside.safetensors")
    return model


def index_promises_too_much(folder: Path) -> Path:
    model = write_sharded_hf(folder, "piece.safetensors")
    save_file({"masked_spec_embed": torch.zeros(16)}, model / "piece.safetensors")
    return model


def hf_bin_runs_code(folder: Path) -> Path:
    model = write_hf(folder)
    (model / "model.safetensors").unlink()
    torch.save({"weight": torch.zeros(2), "extra": make_payload()}, model / "pytorch_model.bin")
    return model


def downstream_of_nobody(folder: Path) -> Path:
    """s3prl's downstream files do not say which encoder they hold, and no published one has these
    shapes."""
    upstream = OrderedDict(
        (f"model.{name}", tensor) for name, tensor in toy_encoder("hubert").state.items()
    )
    torch.save(
        {"Upstream": upstream, "Args": argparse.Namespace(upstream="hubert"), "Config": {}},
        folder / "down.ckpt",
    )
    return folder / "down.ckpt"


def downstream_without_upstream(folder: Path) -> Path:
    torch.save(
        {"Downstream": {}, "Featurizer": {}, "Args": argparse.Namespace()}, folder / "head.ckpt"
    )
    return folder / "head.ckpt"


SENTENCES: dict[Callable[[Path], Path], str] = {
    cut_file: "damaged or cut short",
    text_as_pt: "Git LFS pointer",
    fifo: "neither a file nor a folder",
    pickle_as_safetensors: "Rename it",
    zip_bomb: "compressed",
    duplicate_member: "twice",
    overlapping_members: "overlap",
    os_system: ".system",
    os_system_legacy: ".system",
    claims_terabytes_legacy: "damaged or cut short",
    builtin_eval: "eval",
    bare_pickle: ".system",
    conv_is_code: "conv_feature_layers",
    activation_is_code: "activation_fn",
    hubert_as_wav2vec2: "label_embs_concat is not part of the model",
    missing_layer: "encoder.layers.1.self_attn.k_proj.weight is missing",
    no_config: "config.json",
    fine_tuned_ctc: "without `w2v_args`",
    other_fairseq_model: "data2vec_audio",
    million_layers: "encoder_layers",
    enormous_width: "encoder_embed_dim",
    enormous_repeat: "conv_feature_layers",
    nan_weights: "no finite numbers",
    claims_more_than_it_holds: "claims 1000000000000 values",
    meta_tensor: "not a dense tensor",
    name_with_newline: "not a table of tensors",
    namespace_with_tricks: "encoder_layers",
    config_with_objects: "not plain data",
    config_contains_itself: "beyond every configuration",
    billion_laughs: "beyond every configuration",
    huge_header: "not a whole safetensors file",
    bit_flip: "sha256",
    hf_of_another_family: "whisper",
    hf_config_of_wrong_types: "conv_dim",
    hf_text_width: "encoder_embed_dim",
    hf_config_is_no_json: "not JSON",
    hf_bit_flip: "not as it was exported",
    index_leaves_folder: "../outside.safetensors",
    index_follows_link: "leaves the folder",
    index_promises_too_much: "in none of its files",
    hf_bin_runs_code: ".system",
    downstream_of_nobody: "--config-from",
    downstream_without_upstream: "frozen",
}
"""Each file, and the words of its sentence that say what is wrong."""


def list_files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize("make", SENTENCES, ids=lambda make: make.__name__)
def test_one_sentence_and_nothing_written(
    make: Callable[[Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    path = make(tmp_path)
    before = list_files(tmp_path)
    code = main(["convert", str(path), "--to", "safetensors", str(tmp_path / "out.safetensors")])
    output = capsys.readouterr()
    assert code == 2
    assert output.out == ""
    (sentence,) = output.err.splitlines()
    assert sentence.startswith("speechft: ")
    assert SENTENCES[make] in sentence
    assert len(sentence) < 1200
    assert list_files(tmp_path) == before
    assert TRAP not in {file.name for file in before}


@pytest.mark.parametrize(
    "make", [cut_file, os_system, missing_layer, conv_is_code], ids=lambda make: make.__name__
)
def test_inspect_says_the_same(
    make: Callable[[Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    path = make(tmp_path)
    before = list_files(tmp_path)
    assert main(["inspect", str(path)]) == 2
    assert SENTENCES[make] in capsys.readouterr().err
    assert list_files(tmp_path) == before


def test_the_payload_runs_when_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own unpickler runs the payload; otherwise the tests above would prove nothing."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(bare_pickle(tmp_path).read_bytes())
    assert (tmp_path / TRAP).exists()


def test_what_the_allow_list_admits_does_nothing(tmp_path: Path) -> None:
    """Stand-ins ignore every argument and keep any state without acting on it."""
    from fractions import Fraction

    from speechft_ray.speech.checkpoints._standins import ALLOWED, StandIn

    for stand_in in set(ALLOWED.values()):
        instance = stand_in("touch x", ["anything"], Fraction)
        assert type(instance) is stand_in
        instance.__setstate__({"__class__": int, "state": {"x": 1}})
        assert type(instance) is stand_in
        assert instance.state == {"__class__": int, "state": {"x": 1}}
        instance.__setstate__(("not", "a", "dictionary"))
        assert instance.state == {}
        assert isinstance(instance, StandIn)
        assert not hasattr(instance, "__dict__")


def test_a_valid_namespace_loads(tmp_path: Path) -> None:
    """The older kind of fairseq file: all options of model and task in one namespace."""
    weights = toy_encoder("wav2vec2")
    options = {
        **weights.config["model_cfg"],
        **weights.config["task_cfg"],
        "arch": "wav2vec2",
        "task": "audio_pretraining",
    }
    del options["_name"]
    torch.save(
        {
            "args": argparse.Namespace(**options, lr=[0.1]),
            "cfg": None,
            "model": dict(weights.state),
        },
        tmp_path / "old.pt",
    )
    config = load_checkpoint(tmp_path / "old.pt").weights.config
    assert config["task_cfg"] == {**weights.config["task_cfg"]}
    model = weights.config["model_cfg"]
    assert {key: config["model_cfg"][key] for key in model} == model
    assert "lr" not in config["model_cfg"]
