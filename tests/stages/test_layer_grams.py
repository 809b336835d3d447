"""RegMean++: inner products behind merged lower layers, against a computation layer by layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from speechft_ray.core.errors import UserError
from speechft_ray.merging.algebra import merge
from speechft_ray.speech.encoders import hubert
from speechft_ray.speech.encoders.base import EncoderWeights
from speechft_ray.stages.layer_grams import compute_layer_grams
from tests.finetuning.toy_models import start_weights, toy_family  # noqa: F401

State = dict[str, torch.Tensor]


def draw_waves(seed: int, count: int = 3) -> State:
    source = torch.Generator().manual_seed(seed)
    return {
        f"waves:{number:05d}": (0.5 + seed) * torch.randn(2000 + 700 * number, generator=source)
        for number in range(count)
    }


def merge_regmean(weights: list[np.ndarray], inputs: list[np.ndarray]) -> np.ndarray:
    """RegMean's closed form in float64, off-diagonal factor 0.9."""
    grams = [rows.T @ rows / len(rows) for rows in inputs]
    damped = [0.9 * gram + 0.1 * np.diag(np.diag(gram)) for gram in grams]
    total = sum(weight @ gram for weight, gram in zip(weights, damped, strict=True))
    return np.asarray(total @ np.linalg.inv(sum(damped)))


@pytest.mark.usefixtures("toy_family")
def test_each_layer_sees_what_the_merged_layers_below_it_compute() -> None:
    """A convolution and two layers tanh(W x + b), in numpy and float64."""
    base, donors = start_weights(), [dict(start_weights(seed=seed).state) for seed in (1, 2, 3)]
    waves, protected = [draw_waves(seed) for seed in range(3)], ("pretraining_head.",)
    grams = compute_layer_grams(base, donors, protected, waves, {"scale": 5.0})
    actual = merge("regmean_plusplus", {}, base.state, donors, 1.0, protected, grams)

    states = [{name: value.numpy().astype(float) for name, value in d.items()} for d in donors]
    mean = {name: np.mean([state[name] for state in states], axis=0) for name in states[0]}
    inputs = []
    for item in waves:
        frames = [
            np.concatenate([wave.numpy()[None, at : at + 400] for at in starts]).astype(float)
            for wave in item.values()
            for starts in [range(0, len(wave) - 399, 320)]
        ]
        inputs.append(np.concatenate(frames) @ mean["down.weight"][:, 0].T + mean["down.bias"])
    for layer in ("layers.0", "layers.1"):
        weight = merge_regmean([state[f"{layer}.weight"] for state in states], inputs)
        np.testing.assert_allclose(actual[f"{layer}.weight"].numpy(), weight, atol=2e-4)
        inputs = [np.tanh(rows @ weight.T + mean[f"{layer}.bias"]) for rows in inputs]
    np.testing.assert_allclose(actual["layers.1.bias"].numpy(), mean["layers.1.bias"], atol=1e-6)
    assert torch.equal(actual["pretraining_head.weight"], base.state["pretraining_head.weight"])


@pytest.mark.parametrize("large", [False, True])
def test_an_encoder_is_merged_from_below(large: bool) -> None:
    """The inputs of the last layer's products, by hooks in an encoder whose other layers are those
    of the merge; and of the projection of the front end's output."""
    config = hubert.example_config(3, 16, large)
    base, *others = (hubert.init_weights(config, seed) for seed in range(3))
    donors = [
        {name: 0.7 * value + 0.3 * other.state[name] for name, value in base.state.items()}
        for other in others
    ]
    waves, protected = [draw_waves(seed, 2) for seed in range(2)], ("final_proj", "label_embs")
    grams = compute_layer_grams(base, donors, protected, waves, {})
    merged = merge("regmean_plusplus", {}, base.state, donors, 1.0, protected, grams)
    for donor, item, products in zip(donors, waves, grams, strict=True):
        mixed = {
            name: donor[name] if "layers.2." in name and "conv" not in name else value
            for name, value in merged.items()
        }
        encoder = hubert.build(EncoderWeights(family="hubert", config=config, state=mixed))
        module: Any = encoder.module()
        rows: dict[str, list[torch.Tensor]] = {"fc1": [], "fc2": []}
        for name, seen in rows.items():
            getattr(module.encoder.layers[2], name).register_forward_pre_hook(
                lambda _, args, seen=seen: seen.append(args[0].flatten(0, 1))
            )
        with torch.no_grad():
            for wave in item.values():
                encoder.hidden_states([wave])
        for name, inputs in rows.items():
            together = torch.cat(inputs).double()
            expected = (together.T @ together / len(together)).float()
            actual = products[f"layer_gram:encoder.layers.2.{name}.weight"]
            torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-5)
        assert "layer_gram:post_extract_proj.weight" in products
        assert "layer_gram:encoder.layers.0.self_attn.q_proj.weight" in products
        assert not any("final_proj" in name for name in products)


def test_donors_without_waveforms() -> None:
    weights = start_weights()
    with pytest.raises(
        UserError,
        match=r"`regmean_plusplus` needs waves statistics of every donor's tuning set, but there "
        r"are none of donor 2: fine-tune with `gather: \[waves\]`\.",
    ):
        compute_layer_grams(weights, [weights.state] * 2, (), [draw_waves(0), {}], {})
