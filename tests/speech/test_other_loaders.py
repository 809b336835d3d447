"""fairseq, s3prl and transformers load our files and compute the same hidden states; we load
theirs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from speechft_ray.speech.checkpoints.base import FORMATS
from speechft_ray.speech.checkpoints.convert import convert
from speechft_ray.speech.checkpoints.hf import SIDE
from speechft_ray.speech.checkpoints.load import load_checkpoint
from speechft_ray.speech.encoders.base import FAMILIES, EncoderWeights
from tests.speech.toy_models import add_noise, make_wave, toy_encoder

ROOT = Path(__file__).parents[2]
FAIRSEQ, JUDGE = ROOT / ".peers/fairseq", ROOT / "tests/peers/fairseq_judge.py"
WAVE = 3 * make_wave(12_345) + 0.2
CASES = [(family, large) for family in ("hubert", "wav2vec2", "wavlm") for large in (False, True)]

pytestmark = [
    # torch.nn.utils.weight_norm, in s3prl and transformers
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch.jit in s3prl
    pytest.mark.filterwarnings("ignore:Support for mismatched:UserWarning"),  # s3prl's WavLM
]


def compute_our_states(weights: EncoderWeights) -> list[torch.Tensor]:
    """Returns every hidden state of one utterance, each (frames, dim)."""
    with torch.inference_mode():
        return [
            state[0]
            for state in FAMILIES.get(weights.family).build(weights).hidden_states([WAVE]).states
        ]


def assert_equal_states(states: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(states) == len(expected)
    for state, other in zip(states, expected, strict=True):
        torch.testing.assert_close(state, other, atol=1e-5, rtol=0.0)


def import_transformers() -> Any:
    return pytest.importorskip("transformers")


def compute_their_states(model: Any, normalize: bool) -> list[torch.Tensor]:
    """Returns the hidden states of transformers. Its preprocessor has another epsilon than s3prl,
    so the waveform is normalised here."""
    wave = torch.nn.functional.layer_norm(WAVE, WAVE.shape) if normalize else WAVE
    with torch.inference_mode():
        output = model.eval()(wave[None], output_hidden_states=True)
    # The last of its hidden_states is from the last layer; that of s3prl is after the final norm of
    # Large models.
    return [state[0] for state in (*output.hidden_states[:-1], output.last_hidden_state)]


@pytest.mark.parametrize(("family", "large"), CASES)
def test_transformers_loads_our_folders(family: str, large: bool, tmp_path: Path) -> None:
    weights = add_noise(toy_encoder(family, large=large))
    FORMATS.get("hf").write(tmp_path / "model", weights, {})
    kind = getattr(
        import_transformers(),
        {"hubert": "HubertModel", "wav2vec2": "Wav2Vec2Model", "wavlm": "WavLMModel"}[family],
    )
    model, info = kind.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert_equal_states(compute_their_states(model, large), compute_our_states(weights))
    extractor = import_transformers().AutoFeatureExtractor.from_pretrained(tmp_path / "model")
    assert extractor.do_normalize is large


def make_transformers_model(family: str, large: bool, head: str) -> Any:
    """Returns a model of transformers, with a head or without."""
    library = import_transformers()
    prefix = {"hubert": "Hubert", "wav2vec2": "Wav2Vec2", "wavlm": "WavLM"}[family]
    config = getattr(library, f"{prefix}Config")(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        conv_dim=[16] * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        do_stable_layer_norm=large,
        feat_extract_norm="layer" if large else "group",
        conv_bias=large,
        num_codevectors_per_group=6,
        codevector_dim=12,
        proj_codevector_dim=10,
        vocab_size=7,
    )
    torch.manual_seed(1)
    model = getattr(library, prefix + head)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize(("family", "large"), CASES)
@pytest.mark.parametrize("head", ["Model", "ForCTC", "ForSequenceClassification"])
def test_we_load_what_transformers_saves(
    family: str, large: bool, head: str, tmp_path: Path
) -> None:
    model = make_transformers_model(family, large, head)
    model.save_pretrained(tmp_path / "theirs")
    checkpoint = load_checkpoint(tmp_path / "theirs")
    base = model if head == "Model" else getattr(model, family)
    assert_equal_states(compute_our_states(checkpoint.weights), compute_their_states(base, large))
    assert any("head was left out" in note for note in checkpoint.notes) == (head != "Model")
    assert any("normalised" in note for note in checkpoint.notes)


def test_sharded_pickled_and_older_weights_are_read_alike(tmp_path: Path) -> None:
    model = make_transformers_model("hubert", False, "ForCTC")
    model.save_pretrained(tmp_path / "whole")
    expected = load_checkpoint(tmp_path / "whole").weights
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 1
    state = load_file(tmp_path / "whole/model.safetensors")
    renamed = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in state.items()
    }
    assert renamed.keys() != state.keys()
    (tmp_path / "old").mkdir()
    (tmp_path / "old/config.json").write_text((tmp_path / "whole/config.json").read_text())
    torch.save(renamed, tmp_path / "old/pytorch_model.bin", _use_new_zipfile_serialization=False)
    for name in ("shards", "old"):
        weights = load_checkpoint(tmp_path / name).weights
        assert weights.config == expected.config
        assert weights.state.keys() == expected.state.keys()
        assert all(
            torch.equal(weights.state[key], tensor) for key, tensor in expected.state.items()
        )


@pytest.mark.parametrize("large", [False, True])
def test_the_pretraining_parameters_of_transformers_are_read(large: bool, tmp_path: Path) -> None:
    model = make_transformers_model("wav2vec2", large, "ForPreTraining")
    model.save_pretrained(tmp_path / "theirs")
    state = load_checkpoint(tmp_path / "theirs").weights.state
    assert torch.equal(state["quantizer.vars"], model.quantizer.codevectors)
    assert torch.equal(state["quantizer.weight_proj.weight"], model.quantizer.weight_proj.weight)
    assert torch.equal(state["project_q.weight"], model.project_q.weight)
    assert torch.equal(state["final_proj.bias"], model.project_hid.bias)
    convert(tmp_path / "theirs", "s3prl", tmp_path / "all.pt")
    assert load_checkpoint(tmp_path / "all.pt").weights.state.keys() == state.keys(), (
        "nothing had to be filled in"
    )


def compute_s3prl_states(family: str, path: Path) -> list[torch.Tensor]:
    FAMILIES.get(family).build(toy_encoder(family))  # s3prl can be imported from here on
    expert = import_module(f"s3prl.upstream.{family}.expert").UpstreamExpert(os.fspath(path)).eval()
    with torch.inference_mode():
        return [state[0] for state in expert([WAVE])["hidden_states"]]


@pytest.mark.parametrize(("family", "large"), [*CASES, ("decoar2", False)])
def test_s3prl_loads_our_files(
    family: str, large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = add_noise(toy_encoder(family, large=large))
    FORMATS.get("s3prl").write(tmp_path / "ours.pt", weights, {"by": "a test"})
    if family == "decoar2":  # s3prl builds one size only
        FAMILIES.get(family).build(weights)
        for option, value in weights.config["cfg"].items():
            monkeypatch.setitem(import_module("s3prl.upstream.decoar2.decoar2").args, option, value)
    assert_equal_states(
        compute_s3prl_states(family, tmp_path / "ours.pt"), compute_our_states(weights)
    )


@pytest.mark.parametrize(("family", "large"), CASES)
def test_from_transformers_to_s3prl_with_zeros_for_missing_parameters(
    family: str, large: bool, tmp_path: Path
) -> None:
    model = make_transformers_model(family, large, "Model")
    model.save_pretrained(tmp_path / "theirs")
    conversion = convert(tmp_path / "theirs", "s3prl", tmp_path / "ours.pt")
    has_zeros = any("zeros" in note for note in conversion.notes)
    assert has_zeros == (family != "wavlm")  # WavLM's files have no heads of pre-training
    assert_equal_states(
        compute_s3prl_states(family, tmp_path / "ours.pt"), compute_their_states(model, large)
    )
    weights = load_checkpoint(tmp_path / "ours.pt").weights
    original = conversion.checkpoint.weights
    assert weights.state.keys() == original.state.keys(), "zeros were not left out again"
    assert weights.config == original.config


def test_a_folder_tuned_in_transformers_is_not_taken_for_ours(tmp_path: Path) -> None:
    weights = toy_encoder("hubert")
    FORMATS.get("hf").write(tmp_path / "model", weights, {})
    model = import_transformers().HubertModel.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        model.encoder.layer_norm.bias.add_(1.0)
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(Exception, match=f"take {SIDE} out"):
        load_checkpoint(tmp_path / "model")
    (tmp_path / "model" / SIDE).unlink()
    state = load_checkpoint(tmp_path / "model").weights.state
    name = "encoder.layer_norm.bias"
    assert torch.equal(state[name], weights.state[name] + 1.0)


@pytest.mark.skipif(
    not (FAIRSEQ / "ready").exists(),
    reason="needs fairseq: `make fairseq` (a compiler and a network)",
)
def test_fairseq_loads_our_files(tmp_path: Path) -> None:
    """One process for all files: importing fairseq takes seconds. The last file has zeros for the
    parameters that transformers does not have."""
    all_weights = [
        add_noise(toy_encoder(family, large=large))
        for family in ("hubert", "wav2vec2")
        for large in (False, True)
    ]
    paths = [tmp_path / f"{index}.pt" for index in range(len(all_weights))]
    for weights, path in zip(all_weights, paths, strict=True):
        FORMATS.get("fairseq").write(path, weights, {"by": "a test"})
    make_transformers_model("hubert", False, "Model").save_pretrained(tmp_path / "theirs")
    conversion = convert(tmp_path / "theirs", "fairseq", tmp_path / "filled.pt")
    all_weights.append(conversion.checkpoint.weights)
    save_file({"wave": WAVE}, tmp_path / "waves.safetensors")
    out = tmp_path / "out.safetensors"
    program: list[str | Path] = [
        sys.executable,
        "-W",
        "ignore",
        JUDGE,
        tmp_path / "waves.safetensors",
        out,
        *paths,
        tmp_path / "filled.pt",
    ]
    environment = {**os.environ, "PYTHONPATH": str(FAIRSEQ), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        program, env=environment, capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    states = load_file(out)
    for index, weights in enumerate(all_weights):
        expected = compute_our_states(weights)
        assert_equal_states(
            [states[f"{index}.{place}"] for place in range(len(expected))], expected
        )
    assert len(states) == sum(
        FAMILIES.get(weights.family).describe(weights.config).state_count for weights in all_weights
    )


@pytest.mark.parametrize("large", [False, True])
def test_transformers_reads_from_both_files_whether_waveforms_are_normalised(
    tmp_path: Path, large: bool
) -> None:
    """transformers 5 prefers the first, transformers 4 reads only the second."""
    FORMATS.get("hf").write(tmp_path / "model", toy_encoder("hubert", large=large), {})
    nested = json.loads((tmp_path / "model" / "processor_config.json").read_text())
    alone = json.loads((tmp_path / "model" / "preprocessor_config.json").read_text())
    assert nested["feature_extractor"] == alone
    assert (alone["do_normalize"], alone["sampling_rate"]) == (large, 16_000)
