"""HuBERT and wav2vec 2.0 against fairseq's values, s3prl's side effects, FBank against Kaldi's
definition."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from speechft_ray.core.errors import UserError
from speechft_ray.core.units import frame_count
from speechft_ray.speech.checkpoints.load import load_encoder
from speechft_ray.speech.encoders._conv_layers import parse_conv_layers
from speechft_ray.speech.encoders.base import FAMILIES, EncoderWeights
from speechft_ray.speech.encoders.fbank import FBankEncoder, log_mel
from speechft_ray.speech.encoders.hubert import build
from tests.speech.toy_models import (
    FAIRSEQ_FILES,
    add_noise,
    make_wave,
    toy_config,
    toy_encoder,
    toy_hubert,
    write_tiny_hubert,
)


def expert(path: object) -> Any:
    from s3prl.upstream.hubert.expert import UpstreamExpert

    return UpstreamExpert(str(path)).eval()


# s3prl uses torch.nn.utils.weight_norm and torch.load.
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("lengths", [(16_000,), (12_000, 12_000), (16_000, 9_000, 12_345, 400)])
def test_hidden_states_are_those_of_s3prl(tmp_path: Path, lengths: tuple[int, ...]) -> None:
    path = write_tiny_hubert(tmp_path)
    waves = [make_wave(length, seed) for seed, length in enumerate(lengths)]
    encoder: Any = build(load_encoder(path))
    with torch.inference_mode():
        states = encoder._network._forward(waves)  # pads as s3prl does
        expected = expert(path)(waves)["hidden_states"]
    assert len(states) == len(expected) == 7
    for state, other in zip(states, expected, strict=True):
        # The last bits depend on the addresses of the weights.
        torch.testing.assert_close(state, other, atol=3e-6, rtol=0.0)


@pytest.mark.parametrize("family", ["hubert", "wav2vec2"])
def test_hidden_states_are_those_of_fairseq(family: str) -> None:
    """fairseq 0.12.2 wrote the files and computed the values, for two utterances of which the
    second is padded. It is not installed here."""
    reference = load_file(FAIRSEQ_FILES / "fairseq_features.safetensors")
    expected = {
        name.split(".")[1]: tensor
        for name, tensor in reference.items()
        if name.startswith(f"{family}_base_like.")
    }
    encoder: Any = FAMILIES.get(family).build(
        load_encoder(FAIRSEQ_FILES / f"{family}_base_like.fairseq.pt")
    )
    lengths = reference["lengths"].tolist()
    assert len(set(lengths)) == 2
    waves = [wave[:length] for wave, length in zip(reference["wav"], lengths, strict=True)]
    with torch.inference_mode():
        output = encoder._network._forward(waves)  # pads as fairseq does
        padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
        convolved = encoder.module().feature_extractor(padded)
    states = {f"layer{layer}": output[layer] for layer in range(1, 5)}
    states |= {"conv": convolved.transpose(1, 2), "final": output[-1]}
    # (batch, channels, frames) -> (batch, frames, channels)
    expected["conv"] = expected["conv"].transpose(1, 2)
    assert set(states) == set(expected)
    for index, frames in enumerate(map(frame_count, lengths)):
        for name, state in expected.items():
            torch.testing.assert_close(
                states[name][index, :frames], state[index, :frames], atol=1e-5, rtol=0.0
            )


def test_no_reference_to_states_is_left() -> None:
    """s3prl's hooks would collect the states of every forward pass, so memory would grow in a
    training loop."""
    encoder = build(toy_hubert())
    output = encoder.hidden_states([make_wave(8_000)])
    references = [weakref.ref(state) for state in output.states]
    assert all(not part._forward_hooks for part in encoder.module().modules())
    network: Any = encoder._network
    network.model.encoder(torch.zeros(1, 5, 16))
    assert network._expert._hook_hiddens == []
    del output
    gc.collect()
    assert [reference() for reference in references] == [None] * 3


def test_training_mode_turns_dropout_on() -> None:
    encoder, wave = build(toy_hubert()), make_wave(8_000)
    encoder.module().train()
    torch.manual_seed(0)
    first, second = (encoder.hidden_states([wave]).states for _ in range(2))
    assert not torch.equal(first[-1], second[-1])
    assert len(first) == 3, "layer drop must not change the number of states"


def test_layer_drop_is_off_even_when_the_checkpoint_asks_for_it() -> None:
    encoder = build(toy_hubert(encoder_layerdrop=0.99))
    encoder.module().train()
    assert len(encoder.hidden_states([make_wave(4_000)]).states) == 3


def test_the_first_five_misfits_are_named() -> None:
    weights = toy_hubert()
    state = {
        name: tensor
        for name, tensor in weights.state.items()
        if ".layers.1." not in name or "fc" in name
    }
    state["mask_emb"] = torch.zeros(3)
    with pytest.raises(UserError, match=r"is missing.*and \d+ more") as error:
        build(EncoderWeights(family="hubert", config=weights.config, state=state))
    assert str(error.value).count("encoder.layers.1") == 5


def test_a_built_encoder_can_be_used_after_its_weights_changed() -> None:
    """Weight normalisation must be computed at every forward pass, not once when the model is
    built."""
    encoder, wave = build(toy_hubert()), make_wave(4_000)
    before = encoder.hidden_states([wave]).states[0]
    with torch.no_grad():
        dict(encoder.module().named_parameters())["encoder.pos_conv.0.weight_g"].mul_(3.0)
    assert not torch.allclose(encoder.hidden_states([wave]).states[0], before)


@pytest.mark.parametrize(
    ("family", "changes"),
    [("wav2vec2", {"pos_conv_depth": 3}), ("hubert", {"required_seq_len_multiple": 7})],
)
def test_padding_is_zero_between_positional_convolutions_too(
    family: str, changes: dict[str, int]
) -> None:
    part = FAMILIES.get(family)
    assert part.example_config is not None and part.init_weights is not None
    config = part.example_config(2, 16, False)
    config["model_cfg"].update(changes)
    encoder = part.build(add_noise(part.init_weights(config, 0)))
    waves = [make_wave(samples, samples) for samples in (16_000, 9_000, 5_000)]
    together = encoder.hidden_states_from([encoder.conv_features([wave])[0] for wave in waves])
    for index, wave in enumerate(waves):
        for state, own in zip(together.states, encoder.hidden_states([wave]).states, strict=True):
            torch.testing.assert_close(state[index, : own.shape[1]], own[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["hubert", "wavlm", "wav2vec2"])
@pytest.mark.parametrize("training", [False, True])
def test_masking_is_that_of_s3prl(family: str, training: bool) -> None:
    """Against the masked forward pass of pre-training, whose own mask is replaced."""
    encoder = FAMILIES.get(family).build(add_noise(toy_encoder(family)))
    model: Any = encoder.module().train(training)
    wave, other = make_wave(8_000), make_wave(8_000, 1)
    masks = [
        torch.randperm(24, generator=torch.Generator().manual_seed(seed)) < 11 for seed in range(2)
    ]

    def apply_mask(
        x: torch.Tensor, padding_mask: Any, *rest: Any, **more: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x[torch.stack(masks)] = model.mask_emb
        return x, torch.stack(masks)

    model.apply_mask = apply_mask
    no_padding = torch.zeros(2, 8_000, dtype=torch.bool)
    torch.manual_seed(0)
    with ignore_mask_warning():
        output = model.extract_features(torch.stack([wave, other]), no_padding, mask=True)
    expected = output["x"] if family == "wav2vec2" else output[0]
    torch.manual_seed(0)
    state = encoder.hidden_states_from(encoder.conv_features([wave, other]), masks).states[-1]
    torch.testing.assert_close(state, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        (
            "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2",
            ((512, 10, 5), *[(512, 3, 2)] * 4, *[(512, 2, 2)] * 2),
        ),
        (
            "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]",
            ((512, 10, 5), *[(512, 3, 2)] * 4, *[(512, 2, 2)] * 2),
        ),
        ("[(1, 2, 3), (4, 5, 6),]", ((1, 2, 3), (4, 5, 6))),
        (" [ ( 1 , 2 , 3 ) ] ", ((1, 2, 3),)),
    ],
)
def test_conv_layers_are_read_as_python_would(
    text: str, layers: tuple[tuple[int, int, int], ...]
) -> None:
    assert parse_conv_layers(text) == layers
    assert layers == tuple(eval(text, {"__builtins__": {}}))


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "[(512, 10, 5)] + __import__('os').environ",
        "[(512, 10, 5)] * 1000000",
        "[(512, 10, 5)] * 33",
        "[(512, 10)]",
        "[(512, 10, 0)]",
        "[(512, 10, -5)]",
        "[(512, 10, 5)",
        "[(512, 10, 5) (1, 2, 3)]",
        "[(1, 2, 3), , ]",
        "[]",
        "",
        "[(x, 10, 5)]",
        "[(9999999, 1, 1)]",
        None,
        [[512, 10, 5]],
    ],
)
def test_nothing_else_is_accepted_as_conv_layers(text: Any) -> None:
    with pytest.raises(UserError, match="conv_feature_layers"):
        parse_conv_layers(text)


def test_a_configuration_with_code_raises_and_is_not_run(tmp_path: Any) -> None:
    trap = tmp_path / "ran"
    config = toy_config(
        conv_feature_layers=f"[(8, 10, 5)] + [open({str(trap)!r}, 'w') and (8, 3, 2)]"
    )
    with pytest.raises(UserError, match="Nothing in it was evaluated"):
        build(EncoderWeights(family="hubert", config=config, state=toy_hubert().state))
    assert not trap.exists()


@contextmanager
def ignore_mask_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Support for mismatched key_padding_mask and attn_mask", UserWarning
        )
        yield


@pytest.mark.parametrize(("bands", "samples"), [(80, 16_000), (23, 4_321)])
def test_log_mel_is_kaldis(bands: int, samples: int) -> None:
    from torchaudio.compliance.kaldi import fbank

    wave = make_wave(samples)
    expected = fbank(
        wave[None], num_mel_bins=bands, window_type="hamming", dither=0.0, snip_edges=True
    )
    torch.testing.assert_close(log_mel(wave, bands), expected, atol=2e-3, rtol=0)


def test_fbank_is_normalised_and_independent_of_the_batch() -> None:
    waves = [make_wave(16_000), make_wave(7_000, 1)]
    together = FBankEncoder().hidden_states(waves)
    for index, wave in enumerate(waves):
        alone = FBankEncoder().hidden_states([wave]).states[0][0]
        frames = int(together.frames[index])
        assert torch.equal(together.states[0][index, :frames], alone)
        assert (together.states[0][index, frames:] == 0).all()
        torch.testing.assert_close(alone.mean(dim=0), torch.zeros(80), atol=1e-4, rtol=0)
        torch.testing.assert_close(
            alone.std(dim=0, correction=0), torch.ones(80), atol=1e-3, rtol=0
        )


def test_fbank_of_one_frame_is_finite() -> None:
    assert torch.isfinite(FBankEncoder().hidden_states([make_wave(400)]).states[0]).all()


@pytest.mark.parametrize("family", ["hubert", "wavlm", "wav2vec2"])
def test_a_filter_of_warnings_that_another_thread_sets_meanwhile_stays(family: str) -> None:
    encoder = FAMILIES.get(family).build(toy_encoder(family))
    before = list(warnings.filters)

    def act_as_another_thread(*_: object) -> None:
        warnings.filterwarnings("ignore", "set by another thread")

    module = next(iter(encoder.module().children()))
    handle = module.register_forward_hook(act_as_another_thread)
    try:
        with torch.no_grad():
            encoder.hidden_states([make_wave(4000)])
        assert any("another thread" in str(item[1]) for item in warnings.filters)
    finally:
        handle.remove()
        warnings.filters[:] = before  # type: ignore[index]
