"""Checkpoints as people have them: other modules around the encoder, older names, recognisers,
pointers instead of files. Each ends in the encoder that was saved or in the reason why not."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from speechft_ray.core.errors import UserError
from speechft_ray.speech.checkpoints._wrappers import read_encoder_part
from speechft_ray.speech.checkpoints.base import FORMATS
from speechft_ray.speech.checkpoints.convert import convert
from speechft_ray.speech.checkpoints.hf import SIDE
from speechft_ray.speech.checkpoints.inspect import inspect, list_targets
from speechft_ray.speech.checkpoints.load import load_checkpoint, locate_encoder
from speechft_ray.speech.encoders.base import FAMILIES, EncoderWeights
from tests.speech.toy_models import add_noise, toy_encoder

Table = dict[str, Any]

WEIGHT_NORM = {"weight_g": "parametrizations.weight.original0"} | {
    "weight_v": "parametrizations.weight.original1"
}


def assert_same_parameters(state: Mapping[str, torch.Tensor], expected: EncoderWeights) -> None:
    assert state.keys() == expected.state.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.state.items())


def remove_pretraining(weights: EncoderWeights) -> EncoderWeights:
    """Returns what transformers' base model holds of an encoder, and what fairseq's recognisers do:
    all parameters but the heads of pre-training."""
    optional = FAMILIES.get(weights.family).pretraining_only_prefixes
    heads = tuple(name for name in optional if name != "mask_emb")
    state = {name: each for name, each in weights.state.items() if not name.startswith(heads)}
    return EncoderWeights(family=weights.family, config=weights.config, state=state)


def write_folder(folder: Path, edit: Callable[[Table], Any], family: str = "hubert") -> Path:
    """Writes a folder of transformers whose state dict ``edit`` changes, as ``pytorch_model.bin``,
    without our side file."""
    FORMATS.get("hf").write(folder, add_noise(toy_encoder(family)), {})
    (folder / SIDE).unlink()
    table: Table = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(edit(table) or table, folder / "pytorch_model.bin")
    return folder


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def add_prefix(prefix: str, **beside: Any) -> Callable[[Table], Table]:
    return lambda table: {prefix + name: each for name, each in table.items()} | beside


WRAPPERS: dict[str, tuple[Callable[[Table], Any], str]] = {
    "data parallel": (add_prefix("module."), "`module.` (DataParallel"),
    "data parallel, with a head": (
        add_prefix("module.hubert.", **{"module.lm_head.weight": torch.zeros(3, 16)}),
        "head was left out: module.lm_head.weight",
    ),
    "compiled": (add_prefix("_orig_mod."), "torch.compile"),
    "compiled data parallel": (add_prefix("module._orig_mod.hubert."), "torch.compile"),
    "compiled submodules": (
        lambda table: {
            name.replace("encoder.layers.1.", "encoder.layers.1._orig_mod."): each
            for name, each in table.items()
        },
        "torch.compile",
    ),
    "checkpointed layers": (
        lambda table: {
            name.replace("layers.0.", "layers.0._checkpoint_wrapped_module."): each
            for name, each in table.items()
        },
        "activation checkpointing",
    ),
    "fully sharded": (add_prefix("_fsdp_wrapped_module."), "FullyShardedDataParallel"),
    "speechbrain": (add_prefix("model."), "SpeechBrain"),
    "merged by peft": (add_prefix("base_model.model."), "PEFT"),
    "lightning": (
        lambda table: {
            "pytorch-lightning_version": "2.4",
            "state_dict": add_prefix("model.hubert.", **{"head.bias": torch.zeros(2)})(table),
        },
        "head was left out: head.bias",
    ),
    "a training checkpoint": (
        lambda table: {"model_state_dict": table, "epoch": 3, "optimizer": {"state": {}}},
        "",
    ),
    "stochastic weight averaging": (
        add_prefix("module.", n_averaged=torch.tensor(5)),
        "n_averaged",
    ),
    "contentvec": (
        add_prefix("", **{"final_proj.weight": torch.zeros(8, 16)}),
        "head was left out: final_proj.weight",
    ),
    "buffers": (
        add_prefix(
            "hubert.",
            **{
                "hubert.encoder.position_ids": torch.arange(9),
                "head.norm.num_batches_tracked": torch.tensor(7),
                "head.norm.is_trained": torch.tensor(True),
                'head.Käse "mit" Brot.weight': torch.zeros(2),
            },
        ),
        "head.norm.num_batches_tracked",
    ),
    "weight norm before torch 2.1": (
        lambda table: {
            name.replace(WEIGHT_NORM["weight_g"], "weight_g").replace(
                WEIGHT_NORM["weight_v"], "weight_v"
            ): each
            for name, each in table.items()
        },
        "",
    ),
    "first name of the mask embedding": (
        lambda table: {
            name.replace("masked_spec_embed", "mask_time_emb_vector"): each
            for name, each in table.items()
        },
        "",
    ),
}
"""What was saved around or beside an encoder, and words of the note on it."""


@pytest.mark.parametrize("case", WRAPPERS)
def test_the_encoder_is_read_out_of_what_was_saved_around_it(case: str, tmp_path: Path) -> None:
    edit, words = WRAPPERS[case]
    checkpoint = load_checkpoint(write_folder(tmp_path / "model", edit))
    assert_same_parameters(
        checkpoint.weights.state, remove_pretraining(add_noise(toy_encoder("hubert")))
    )
    assert words in " ".join(checkpoint.notes)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    prefix=st.lists(
        st.sampled_from(["module", "model", "_orig_mod", "base_model", "upstream", "hubert"]),
        max_size=4,
    ),
    newer=st.booleans(),
    family=st.sampled_from(["hubert", "wav2vec2", "wavlm", "decoar2"]),
)
def test_wrappers_may_be_nested(prefix: list[str], newer: bool, family: str) -> None:
    weights = toy_encoder(family)
    whole = "".join(f"{part}." for part in prefix)
    table = {whole + name: each for name, each in weights.state.items()}
    for old, new in WEIGHT_NORM.items() if newer else ():
        table = {
            name.replace(f"pos_conv.0.{old}", f"pos_conv.0.{new}"): e for name, e in table.items()
        }
    part = read_encoder_part(Path("x.pt"), table, "model")
    assert_same_parameters(part.state, weights)
    assert not part.beside


@pytest.mark.parametrize("newer", [False, True])
@pytest.mark.parametrize("name", ["fairseq", "s3prl", "s3prl-downstream"])
def test_wrappers_and_newer_names_are_read_in_every_pt_format(
    name: str, newer: bool, tmp_path: Path
) -> None:
    weights = add_noise(toy_encoder("wav2vec2"))
    FORMATS.get(name).write(tmp_path / "ours.pt", weights, {})
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(tmp_path / "ours.pt", weights_only=True)
    del content["speechft_ray"]
    key = {"fairseq": "model", "s3prl": "model_weight", "s3prl-downstream": "Upstream"}[name]
    table = content[key]
    for old, new in WEIGHT_NORM.items() if newer else ():
        table = {each.replace(old, new): tensor for each, tensor in table.items()}
    prefix = "" if name == "s3prl-downstream" and newer else "module."
    content[key] = {prefix + each: tensor for each, tensor in table.items()}
    torch.save(content, tmp_path / "theirs.pt")
    FORMATS.get("safetensors").write(tmp_path / "base.safetensors", toy_encoder("wav2vec2"), {})
    config_from = tmp_path / "base.safetensors" if name == "s3prl-downstream" else None
    checkpoint = load_checkpoint(tmp_path / "theirs.pt", config_from)
    assert_same_parameters(checkpoint.weights.state, weights)


def test_a_positional_convolution_without_weight_norm_gets_it_again(tmp_path: Path) -> None:
    """``remove_weight_norm`` leaves the product of magnitude and direction."""

    def merge(table: Table) -> None:
        names = [f"encoder.pos_conv_embed.conv.{each}" for each in WEIGHT_NORM.values()]
        magnitude, direction = (table.pop(name) for name in names)
        direction[..., 3] = 0.0  # a column without direction: the weight is zero there
        norm = direction.norm(dim=(0, 1), keepdim=True).clamp(min=1e-30)
        table["encoder.pos_conv_embed.conv.weight"] = magnitude * direction / norm

    folder = write_folder(tmp_path / "model", merge)
    table = torch.load(folder / "pytorch_model.bin", weights_only=True)
    state = load_checkpoint(folder).weights.state
    direction = state["encoder.pos_conv.0.weight_v"]
    weight = state["encoder.pos_conv.0.weight_g"] * (
        direction / direction.norm(dim=(0, 1), keepdim=True)
    )
    expected = table["encoder.pos_conv_embed.conv.weight"]
    torch.testing.assert_close(weight, expected, atol=1e-6, rtol=0.0)
    assert not bool(weight[..., 3].any())


REFUSALS: dict[str, tuple[Callable[[Table], Any], str]] = {
    "unmerged peft": (
        lambda table: {
            name.replace("q_proj.", "q_proj.base_layer."): e for name, e in table.items()
        },
        "merge_and_unload",
    ),
    "peft with its model around": (
        lambda table: (
            add_prefix("base_model.model.hubert.")(table)
            | {
                "base_model.model.hubert.encoder.layers.0.attention.q_proj.lora_A.default.weight": (
                    torch.zeros(2, 16)
                )
            }
        ),
        "merge_and_unload",
    ),
    "adapters alone": (
        lambda table: {
            "base_model.model.encoder.layers.0.attention.q_proj.lora_A.weight": torch.zeros(2, 16)
        },
        "merge_and_unload",
    ),
    "two encoders": (
        lambda table: add_prefix("student.")(table) | add_prefix("teacher.")(table),
        "`student.`, `teacher.`",
    ),
    "quantised": (
        lambda table: (
            table
            | {
                "encoder.layers.0.feed_forward.output_dense.weight": torch.zeros(
                    16, 64, dtype=torch.int8
                )
            }
        ),
        "torch.int8",
    ),
    "of another network": (
        lambda table: table | {"encoder.layers.0.macaron.weight": torch.zeros(2)},
        "no encoder of its `model_type` has",
    ),
    "a head alone": (
        lambda table: {"lm_head.weight": torch.zeros(2)},
        "no parameters of an encoder",
    ),
    "two weight norms": (
        lambda table: table | {"encoder.pos_conv_embed.conv.weight_g": torch.zeros(1, 1, 16)},
        "two tensors for",
    ),
    "a module": (lambda table: torch.nn.Linear(2, 2), "whole module"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_no_encoder_is_refused_with_the_reason(case: str, tmp_path: Path) -> None:
    edit, words = REFUSALS[case]
    with pytest.raises(UserError, match=words):
        load_checkpoint(write_folder(tmp_path / "model", edit))


@pytest.mark.parametrize(
    "labels",
    [
        {"0": "käse\n\tbrot", "1": 'a "quoted" \u2028 text', "2": ""},
        {"0": "x" * 200_000},
        {str(index): index for index in range(3)},
        ["a", None, float("inf")],
    ],
)
def test_labels_of_a_classifier_may_be_any_text(labels: Any, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", add_prefix("hubert."))
    names = list(labels.values()) if isinstance(labels, dict) else labels
    edit_json(folder / "config.json", id2label=labels, label2id={str(each): 0 for each in names})
    assert load_checkpoint(folder).weights.family == "hubert"


def test_a_byte_order_mark_is_no_part_of_a_description(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", lambda table: None)
    for name in ("config.json", "preprocessor_config.json"):
        file = folder / name
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert load_checkpoint(folder).weights.family == "hubert"


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("feat_proj_layer_norm", False, "DistilHuBERT"),
        ("conv_pos_batch_norm", True, "batch norm"),
        ("adapter_attn_dim", 16, "MMS"),
        ("add_adapter", True, "adapter behind the layers"),
    ],
)
def test_a_network_that_is_not_supported_is_named(
    key: str, value: Any, words: str, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "model", lambda table: None)
    edit_json(folder / "config.json", **{key: value})
    with pytest.raises(UserError, match=words) as refusal:
        load_checkpoint(folder)
    assert "s3prl has no such" not in str(refusal.value)


def write_recogniser(path: Path, family: str, layout: str) -> EncoderWeights:
    """Writes a fine-tuned recogniser of fairseq; returns the encoder in it."""
    weights = add_noise(toy_encoder(family, large=True))
    model, task = dict(weights.config["model_cfg"]), dict(weights.config["task_cfg"])
    name = {"hubert": "hubert_ctc", "wav2vec2": "wav2vec_ctc"}[family]
    encoder = remove_pretraining(weights)
    table = {f"w2v_encoder.w2v_model.{each}": tensor for each, tensor in encoder.state.items()}
    table["w2v_encoder.proj.weight"] = torch.zeros(5, 16)
    outer = {"_name": name, "encoder_embed_dim": 768, "normalize": True, "final_dropout": 0.1}
    tuning = {"_name": "audio_finetuning", "normalize": True, "labels": ["ltr"]}
    content: Table = {"model": table, "args": None, "task_state": {"dictionaries": [["a", "b"]]}}
    if layout == "namespace":
        inner = argparse.Namespace(arch=model.pop("_name"), **model, **{**task, "task": "x"})
        vars(inner).pop("_name", None)
        vars(inner).pop("normalize", None)  # the tuning says it
        options = {"arch": name, "task": "audio_pretraining", "normalize": True}
        content["args"] = argparse.Namespace(
            **options, w2v_args=inner, lr=[1e-5], best=float("inf")
        )
    elif layout == "cfg":
        inner_config = {"model": model, "task": {**task, "normalize": "${model.norm}"}}
        inner_config["model"]["norm"] = True
        content["cfg"] = {"model": {**outer, "w2v_args": inner_config}, "task": tuning}
        content["cfg"]["optimization"] = {"stop": float("nan")}
    else:
        content["cfg"] = {"model": {**model, "_name": name}, "task": {**tuning, **task}}
    torch.save(content, path)
    return encoder


@pytest.mark.parametrize("layout", ["cfg", "namespace", "flat"])
@pytest.mark.parametrize("family", ["hubert", "wav2vec2"])
def test_the_encoder_of_a_fine_tuned_recogniser_of_fairseq_is_read(
    family: str, layout: str, tmp_path: Path
) -> None:
    encoder = write_recogniser(tmp_path / "ctc.pt", family, layout)
    checkpoint = load_checkpoint(tmp_path / "ctc.pt")
    assert_same_parameters(checkpoint.weights.state, encoder)
    part = FAMILIES.get(family)
    assert part.describe(checkpoint.weights.config) == part.describe(encoder.config)
    assert "w2v_encoder.proj.weight" in " ".join(checkpoint.notes)
    wave = torch.randn(4_000, generator=torch.Generator().manual_seed(0))
    states = [
        part.build(weights).hidden_states([wave]).states[-1]
        for weights in (checkpoint.weights, encoder)
    ]
    assert torch.equal(*states)
    for to in ("hf", "fairseq", "s3prl"):
        convert(tmp_path / "ctc.pt", to, tmp_path / to)
        assert_same_parameters(load_checkpoint(tmp_path / to).weights.state, encoder)


def write_without_dictionaries(path: Path, dictionaries: list[list[str]]) -> EncoderWeights:
    base = toy_encoder("hubert")
    part = FAMILIES.get("hubert")
    assert part.init_weights is not None
    weights = part.init_weights({**base.config, "dictionaries_symbols": dictionaries}, 0)
    sections = {"model": base.config["model_cfg"], "task": base.config["task_cfg"]}
    torch.save({"args": None, "cfg": sections, "model": dict(weights.state)}, path)
    return weights


def test_a_hubert_without_dictionaries_is_read(tmp_path: Path) -> None:
    """Only the number of labels matters, and the label embeddings have it."""
    weights = write_without_dictionaries(tmp_path / "x.pt", [["a", "b", "c"]])
    checkpoint = load_checkpoint(tmp_path / "x.pt")
    assert_same_parameters(checkpoint.weights.state, weights)
    assert checkpoint.weights.config["dictionaries_symbols"] == [["0", "1", "2"]]
    assert "numbers stand for them" in " ".join(checkpoint.notes)
    convert(tmp_path / "x.pt", "fairseq", tmp_path / "y.pt")
    write_without_dictionaries(tmp_path / "two.pt", [["a", "b"], ["c"]])
    with pytest.raises(UserError, match="labels of 2 dictionaries"):
        load_checkpoint(tmp_path / "two.pt")


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1136468879\n"


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "config.json"])
@pytest.mark.parametrize(("text", "words"), [(POINTER, "git lfs pull"), ("", r"empty \(0 bytes\)")])
def test_pointers_and_empty_files_are_named(
    name: str, text: str, words: str, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "model", lambda table: None)
    (folder / "pytorch_model.bin").unlink()
    (folder / name).write_text(text)
    for path in (folder, folder / name):
        with pytest.raises(UserError, match=words):
            load_checkpoint(path)


def write_lone_state(folder: Path, names: str) -> Path:
    table: Table = dict(toy_encoder("hubert").state)
    if names == "hf":
        file = write_folder(folder / "there", lambda state: None) / "pytorch_model.bin"
        table = torch.load(file, weights_only=True)
        shutil.rmtree(folder / "there")
    torch.save({"state_dict": table, "pytorch-lightning_version": "2.4"}, folder / "last.ckpt")
    return folder / "last.ckpt"


def make_folder(folder: Path, *files: str) -> Path:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


HINTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "weights of a folder": (
        lambda place: write_folder(place / "m", lambda table: None) / "pytorch_model.bin",
        "give the folder",
    ),
    "its description": (
        lambda place: write_folder(place / "m", lambda table: None) / "config.json",
        "Give its folder",
    ),
    "a state dict": (lambda place: write_lone_state(place, "hf"), "Copy it as pytorch_model.bin"),
    "fairseq's names": (
        lambda place: write_lone_state(place, "s3prl"),
        "Lightning.*`model_weight`",
    ),
    "an experiment of s3prl": (
        lambda place: make_folder(place, "states-10.ckpt", "config_1.yaml"),
        "it has states-10.ckpt",
    ),
    "a trainer's output": (
        lambda place: make_folder(place, "checkpoint-500/config.json"),
        "it has checkpoint-500",
    ),
    "a model in the hub's cache": (
        lambda place: make_folder(place, "snapshots/0a1b/config.json"),
        "it has snapshots/0a1b",
    ),
    "adapters": (lambda place: make_folder(place, "adapter_config.json"), "merge_and_unload"),
    "weights alone": (lambda place: make_folder(place, "model.safetensors"), "Put the config.json"),
}


@pytest.mark.parametrize("case", HINTS)
def test_what_is_no_checkpoint_says_how_to_go_on(case: str, tmp_path: Path) -> None:
    make, words = HINTS[case]
    with pytest.raises(UserError, match=words):
        load_checkpoint(make(tmp_path))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("facebook/hubert-base-ls960", "hf:facebook/hubert-base-ls960"),
        ("microsoft/wavlm-large@main", "hf:microsoft/wavlm-large@main"),
        ("https://huggingface.co/utter-project/mHuBERT-147", "hf:utter-project/mHuBERT-147"),
        ("huggingface.co/a/b/tree/v2", "hf:a/b@v2"),
    ],
)
def test_a_model_of_the_hub_without_its_prefix_gets_the_hint(
    text: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refusal:
        locate_encoder(text)
    assert str(refusal.value).endswith(f" {name}.")
    for path in ("runs/encoder.pt", "./a/b", "a/b/c"):
        with pytest.raises(UserError) as refusal:
            locate_encoder(path)
        assert "hf:" not in str(refusal.value)


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((family, {}) for family in FAMILIES.names()),
    *(
        (family, {"activation_fn": name})
        for family in ("hubert", "wav2vec2", "wavlm")
        for name in ("relu", "gelu_accurate", "tanh", "linear")
    ),
    ("wavlm", {"gru_rel_pos": False}),
    ("wavlm", {"relative_position_embedding": False, "gru_rel_pos": False}),
    ("wav2vec2", {"pos_conv_depth": 2}),
    ("wav2vec2", {"quantizer_depth": 2}),
    ("hubert", {"untie_final_proj": False}),
]


@pytest.mark.parametrize(("family", "changes"), VARIANTS)
def test_inspect_names_exactly_what_convert_writes(
    family: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    weights = toy_encoder(family)
    part = FAMILIES.get(family)
    if changes:
        config = json.loads(json.dumps(weights.config))
        config["cfg" if family == "wavlm" else "model_cfg"] |= changes
        assert part.init_weights is not None
        weights = part.init_weights(config, 0)
    path = tmp_path / "x"
    FORMATS.get("safetensors").write(path, weights, {})
    targets, reasons = list_targets(weights)
    (line,) = [text for heading, text in inspect(path).lines if heading == "can become"]
    assert line.split("; not ")[0] == ", ".join(targets)
    assert sorted([*targets, *reasons]) == FORMATS.names()
    for name in FORMATS.names():
        if name in targets:
            convert(path, name, tmp_path / name)
            assert_same_parameters(load_checkpoint(tmp_path / name).weights.state, weights)
        else:
            assert name in line.split("; not ", 1)[1]
            with pytest.raises(UserError):
                convert(path, name, tmp_path / name)


def test_an_index_that_names_a_missing_shard_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", lambda table: None)
    table = torch.load(folder / "pytorch_model.bin", weights_only=True)
    (folder / "pytorch_model.bin").unlink()
    names = sorted(table)
    places = {name: f"model-{index % 2}.safetensors" for index, name in enumerate(names)}
    for shard in set(places.values()):
        part = {f"hubert.{name}": table[name].half() for name in names if places[name] == shard}
        save_file(part, folder / shard)
    index = {f"hubert.{name}": shard for name, shard in places.items()}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    state = load_checkpoint(folder).weights.state
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-1\.safetensors is missing"):
        load_checkpoint(folder)
