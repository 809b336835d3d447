"""Encoders of one network may be merged: decided by every option of every family against the hidden
states that it gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from speechft_ray.core.errors import UserError
from speechft_ray.speech.encoders.base import FAMILIES, EncoderWeights
from speechft_ray.speech.encoders.compatibility import (
    check_same_network,
    find_protected_prefixes,
)
from tests.speech.toy_models import add_noise, make_wave, toy_encoder, toy_hubert

WAVE = make_wave(27_000)
"""Long enough for relative positions that share a bucket."""

VALUES: dict[str, tuple[Any, ...]] = {
    "activation_fn": ("relu", "gelu_accurate", "tanh"),
    "extractor_mode": ("layer_norm",),
    "encoder_attention_heads": (1, 4),
    "encoder_layers": (1, 3),
    "encoder_embed_dim": (32,),
    "encoder_ffn_embed_dim": (8,),
    "conv_pos": (8,),
    "conv_pos_groups": (4,),
    "num_buckets": (16,),
    "max_distance": (100,),
    "input_feat": (40,),
    "pos_conv_depth": (2,),
}
"""Other values than those of the examples; true and false, dropout and widths of pre-training are
changed by their type."""
SIZES = (
    *("encoder_layers", "encoder_embed_dim", "encoder_ffn_embed_dim"),
    *("conv_pos", "conv_pos_groups", "num_buckets", "input_feat"),
)
PRETRAINING = ("untie_final_proj", "target_glu", "quantize_targets")
"""Options whose parameters the weights have, so that a network without them cannot load them."""

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # torch.nn.utils.weight_norm
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch.jit in s3prl
    pytest.mark.filterwarnings("ignore:Support for mismatched:UserWarning"),  # s3prl's WavLM
]


def list_changes(weights: EncoderWeights) -> Iterator[tuple[str, Any]]:
    for key, value in FAMILIES.get(weights.family).read_options(weights.config).items():
        others: tuple[Any, ...] = VALUES.get(key, ())
        if isinstance(value, bool):
            others = (not value,)
        elif isinstance(value, float) and not others:
            others = (0.25,)
        yield from ((key, other) for other in others if other != value)
    if "model_cfg" in weights.config or weights.family == "wavlm":
        yield "conv_feature_layers", "[(32, 10, 4)] + [(32, 3, 2)] * 4 + [(32, 2, 2)] * 2"


def change(weights: EncoderWeights, key: str, value: Any) -> EncoderWeights:
    section = "model_cfg" if "model_cfg" in weights.config else "cfg"
    config = {**weights.config, section: {**weights.config[section], key: value}}
    return EncoderWeights(family=weights.family, config=config, state=weights.state)


def compute_states(weights: EncoderWeights) -> torch.Tensor:
    with torch.inference_mode():
        states = FAMILIES.get(weights.family).build(weights).hidden_states([WAVE]).states
    return torch.cat(states)


@pytest.mark.parametrize("family", ["hubert", "wav2vec2", "wavlm", "decoar2"])
def test_options_are_refused_exactly_where_they_change_features(family: str) -> None:
    weights = add_noise(toy_encoder(family))
    states = compute_states(weights)
    changes = list(list_changes(weights))
    assert len(changes) >= 9
    for key, value in changes:
        other = change(weights, key, value)
        try:
            has_effect = not torch.equal(compute_states(other), states)
        except (UserError, RuntimeError):  # the weights do not fit, or give another frame count
            has_effect = True
        try:
            check_same_network(weights, {"donor 1": other})
            is_refused = False
        except UserError as error:
            is_refused = True
            assert f"`{key}" in str(error)
        # Where names or shapes differ, the merge itself says so.
        shows = key in SIZES or key in PRETRAINING
        assert is_refused == (has_effect and not shows), (key, value)


def test_another_normalisation_is_noted() -> None:
    base = toy_hubert()
    task = {**base.config["task_cfg"], "normalize": True}
    donor = EncoderWeights(
        family="hubert", config={**base.config, "task_cfg": task}, state=base.state
    )
    (note,) = check_same_network(base, {"donor 1": donor, "donor 2": base})
    assert note == (
        "donor 1 brings waveforms to zero mean and unit variance, the base takes waveforms as they "
        "are"
    )


def test_activations_with_two_names_are_one() -> None:
    base = toy_hubert(activation_fn="gelu_fast")
    assert check_same_network(base, {"donor 1": toy_hubert(activation_fn="gelu_accurate")}) == []


def test_absent_options_are_their_defaults() -> None:
    assert check_same_network(toy_hubert(), {"donor 1": toy_hubert(conv_bias=False)}) == []


def test_a_mask_embedding_is_protected_until_a_donor_changes_it() -> None:
    base = toy_hubert()
    same, trained = dict(base.state), dict(base.state)
    trained["mask_emb"] = base.state["mask_emb"] + 1
    without = {name: value for name, value in same.items() if name != "mask_emb"}
    assert "mask_emb" in find_protected_prefixes(base, [same])
    assert "mask_emb" not in find_protected_prefixes(base, [same, trained])
    assert "mask_emb" in find_protected_prefixes(base, [without, trained])
    assert "final_proj." in find_protected_prefixes(base, [trained])
