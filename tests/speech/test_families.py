"""Every family against s3prl's own expert, loaded by s3prl's own code from a file in its layout."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from speechft_ray.core.errors import UserError
from speechft_ray.core.units import frame_count
from speechft_ray.speech.encoders._s3prl import _WavLMAttention
from speechft_ray.speech.encoders.base import FAMILIES, EncoderWeights
from tests.speech.toy_models import add_noise, make_wave, toy_encoder

FILES: dict[str, Callable[[EncoderWeights], dict[str, Any]]] = {
    "hubert": lambda weights: {**weights.config, "model_weight": weights.state},
    "wav2vec2": lambda weights: {**weights.config, "model_weight": weights.state},
    "wavlm": lambda weights: {"cfg": weights.config["cfg"], "model": weights.state},
    "decoar2": lambda weights: {"model": weights.state},
}
"""The content of the file that s3prl's expert of each family reads."""

ROUNDING = {torch.float32: 3e-6, torch.float64: 1e-12}
"""Most states are equal bit for bit. The last bits of a matrix product depend on the addresses of
the weights."""

LENGTHS = [(16_000,), (12_000, 12_000), (16_000, 9_000, 12_345, 720)]
"""The last is padded as s3prl pads, which the network still does, and only the network."""


def expert(weights: EncoderWeights, folder: Path) -> Any:
    path = folder / f"{weights.family}.pt"
    torch.save(FILES[weights.family](weights), path)
    kind = import_module(f"s3prl.upstream.{weights.family}.expert").UpstreamExpert
    module = kind(os.fspath(path)).eval()
    path.unlink()
    return module


def assert_same_states(
    weights: EncoderWeights,
    module: Any,
    lengths: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
) -> None:
    waves = [3 * make_wave(length, seed).to(dtype) + 0.2 for seed, length in enumerate(lengths)]
    encoder: Any = FAMILIES.get(weights.family).build(weights)
    encoder.module().to(dtype)
    with torch.inference_mode():
        output = encoder.hidden_states(waves)
        states = output.states if len(set(lengths)) == 1 else encoder._network._forward(waves)
        expected = module.to(dtype)(waves)["hidden_states"]
    for state, other in zip(states, expected, strict=True):
        assert state.dtype == dtype
        torch.testing.assert_close(state, other, atol=ROUNDING[dtype], rtol=0.0)
    assert output.frames.tolist() == [frame_count(length) for length in lengths]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # s3prl: torch.nn.utils.weight_norm
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # s3prl: torch.jit
@pytest.mark.filterwarnings("ignore:Support for mismatched:UserWarning")  # s3prl's WavLM
@pytest.mark.parametrize("large", [False, True], ids=["base", "large"])
@pytest.mark.parametrize("name", sorted(FILES))
def test_hidden_states_are_those_of_s3prl(
    name: str, large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = add_noise(toy_encoder(name, large=large))
    FAMILIES.get(name).build(weights)  # imports s3prl beside torchaudio
    if name == "decoar2":  # s3prl builds one size only
        for option, value in weights.config["cfg"].items():
            monkeypatch.setitem(import_module("s3prl.upstream.decoar2.decoar2").args, option, value)
    module = expert(weights, tmp_path)
    for lengths in LENGTHS:
        assert_same_states(weights, module, lengths)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_decoar2_of_the_published_size_is_that_of_s3prl(tmp_path: Path) -> None:
    family = FAMILIES.get("decoar2")
    assert family.init_weights is not None
    weights = family.init_weights({"cfg": {}}, 0)
    assert sum(tensor.numel() for tensor in weights.state.values()) == 89_837_696
    # In float32, rounding alone can reach 3e-6 at this size.
    assert_same_states(weights, expert(weights, tmp_path), (8_000, 5_000), torch.float64)


def test_decoar2_encodes_one_window_as_zeros() -> None:
    """One window has no variance over time, by which s3prl divides."""
    encoder = FAMILIES.get("decoar2").build(add_noise(toy_encoder("decoar2")))
    with torch.inference_mode():
        one, other = (encoder.hidden_states([make_wave(400, seed)]).states for seed in (0, 1))
        longer = encoder.hidden_states([make_wave(560)]).states
    assert all(
        torch.isfinite(state).all() and torch.equal(state, same)
        for state, same in zip(one, other, strict=True)
    )
    assert all(torch.isfinite(state).all() and state.shape[1] == 1 for state in longer)
    assert not torch.allclose(one[0], longer[0])


@pytest.mark.parametrize("name", sorted(FILES))
def test_every_family_counts_frames_alike(name: str) -> None:
    """At all lengths around the steps of the formula, the network yields exactly as many frames."""
    encoder = FAMILIES.get(name).build(toy_encoder(name))
    with torch.inference_mode():
        for samples in (400, 401, 559, 560, 719, 720, 721, 1_039, 1_040, 16_000, 16_079, 16_080):
            output = encoder.hidden_states([make_wave(samples)])
            lengths = {state.shape[1] for state in output.states}
            assert lengths == {frame_count(samples)} == set(output.frames.tolist())


def test_relative_positions_of_wavlm_reach_every_layer() -> None:
    weights = add_noise(toy_encoder("wavlm"))
    bias = "encoder.layers.0.self_attn.relative_attention_bias.weight"
    flat = {**weights.state, bias: torch.zeros_like(weights.state[bias])}
    build = FAMILIES.get("wavlm").build
    with torch.inference_mode():
        states, without = (
            build(EncoderWeights(family="wavlm", config=weights.config, state=state))
            .hidden_states([make_wave(8_000)])
            .states
            for state in (weights.state, flat)
        )
    assert torch.equal(states[0], without[0])
    assert not torch.allclose(states[1], without[1])


MODEL = {"hubert": "model_cfg", "wav2vec2": "model_cfg", "wavlm": "cfg", "decoar2": "cfg"}
BAD: list[tuple[str, Any, str]] = [
    ("encoder_embed_dim", "16", "encoder_embed_dim"),
    ("encoder_embed_dim", 10**9, r"\[1, 8192\]"),
    ("encoder_layers", 10**9, "encoder_layers"),
    ("encoder_layers", True, "encoder_layers"),
    ("encoder_layers", 0, "encoder_layers"),
    ("encoder_ffn_embed_dim", 10**9, "encoder_ffn_embed_dim"),
    ("encoder_attention_heads", 3, "multiple"),
    ("conv_pos_groups", 5, "multiple"),
    ("conv_pos", 10**9, "conv_pos"),
    ("layer_norm_first", 1, "true or false"),
    ("activation_fn", 3, "gelu"),
    ("activation_fn", "swish", "gelu"),
    ("dropout", float("nan"), "dropout"),
    ("dropout", 1.5, "dropout"),
    ("dropout", "0.1 + __import__('os').getpid()", "dropout"),
]
CONVOLUTIONAL: list[tuple[str, Any, str]] = [
    ("extractor_mode", "magic", "default, layer_norm"),
    ("conv_bias", "yes", "conv_bias"),
    ("conv_feature_layers", "[(8, 10, 5)] + [(8, 3, 2)] * 4 + [(8, 2, 2)]", "20 ms hop"),
    ("conv_feature_layers", "[(8, 10, 5)] + [(8, 3, 2)] * 4 + [(99999, 2, 2)] * 2", "channels"),
    ("conv_feature_layers", "__import__('os').system('true')", "Nothing in it was evaluated"),
]
OWN: list[tuple[str, str, Any, str]] = [
    ("hubert", "final_dim", 10**9, "final_dim"),
    ("hubert", "layer_type", "conformer", "transformer"),
    ("wav2vec2", "latent_vars", 10**9, "latent_vars"),
    ("wav2vec2", "latent_groups", 3, "latent_groups"),
    ("wav2vec2", "quantize_input", True, "quantised input"),
    ("wav2vec2", "crop_seq_to_multiple", 2, "crop_seq_to_multiple"),
    ("wav2vec2", "layer_type", "conformer", "transformer"),
    ("wavlm", "num_buckets", 0, "num_buckets"),
    ("wavlm", "max_distance", 80, "more than 80"),
    ("wavlm", "normalize", "False", "true or false"),
    ("decoar2", "input_feat", 10**9, "input_feat"),
]


@pytest.mark.parametrize(
    ("name", "option", "value", "sentence"),
    [(name, *case) for name in sorted(FILES) for case in BAD]
    + [(name, *case) for name in ("hubert", "wav2vec2", "wavlm") for case in CONVOLUTIONAL]
    + OWN,
)
def test_bad_options_raise_before_anything_is_built(
    name: str, option: str, value: Any, sentence: str
) -> None:
    family = FAMILIES.get(name)
    assert family.example_config is not None
    config = family.example_config(2, 16, False)
    config[MODEL[name]][option] = value
    for act in (
        family.describe,
        lambda config: family.build(EncoderWeights(family=name, config=config, state={})),
    ):
        with pytest.raises(UserError, match=sentence):
            act(config)


@pytest.mark.parametrize(
    ("name", "section"),
    [(name, section) for name in sorted(FILES) for section in toy_encoder(name).config],
)
def test_missing_sections_raise(name: str, section: str) -> None:
    config = {key: value for key, value in toy_encoder(name).config.items() if key != section}
    with pytest.raises(UserError, match=section):
        FAMILIES.get(name).describe(config)


@pytest.mark.parametrize(
    ("symbols", "sentence"),
    [
        ("abc", "dictionaries_symbols"),
        ([[1]], "label names"),
        ([["a"] * 5_000_000], "label embeddings"),
    ],
)
def test_dictionaries_of_hubert_are_checked(symbols: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        FAMILIES.get("hubert").describe(
            {**toy_encoder("hubert").config, "dictionaries_symbols": symbols}
        )


@pytest.mark.parametrize("name", ["hubert", "wav2vec2"])
def test_another_sample_rate_raises(name: str) -> None:
    config = {**toy_encoder(name).config, "task_cfg": {"sample_rate": 8_000, "normalize": False}}
    with pytest.raises(UserError, match="16000"):
        FAMILIES.get(name).describe(config)


@pytest.mark.parametrize("name", sorted(FILES))
def test_depth_of_the_configuration_must_be_that_of_the_weights(name: str) -> None:
    weights = toy_encoder(name)
    shallow = {
        other: tensor for other, tensor in weights.state.items() if ".layers.1." not in other
    }
    with pytest.raises(UserError, match="encoder_layers` must be 1"):
        FAMILIES.get(name).build(EncoderWeights(family=name, config=weights.config, state=shallow))


@pytest.mark.parametrize("length", [1, 2, 17, 100, 799, 1201])
def test_wavlm_has_the_position_bias_of_s3prl(length: int) -> None:
    """``max_distance`` is 800: all distances above it share a bucket."""
    attention = import_module("s3prl.upstream.wavlm.modules").MultiheadAttention(
        16, 2, self_attention=True, has_relative_attention_bias=True, max_distance=800
    )
    expected = attention.compute_bias(length, length)
    attention.__class__ = _WavLMAttention
    assert torch.equal(attention.compute_bias(length, length), expected)
