"""HuBERT against s3prl's own expert and fairseq's figures, FBank against Kaldi's definition."""

from __future__ import annotations

import copy
import gc
import subprocess
import sys
import weakref
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from speechft_ray.core.errors import UserError
from speechft_ray.speech.checkpoints.s3prl import read_s3prl
from speechft_ray.speech.encoders import _torchaudio
from speechft_ray.speech.encoders._s3prl import parse_conv_layers
from speechft_ray.speech.encoders.base import EncoderWeights
from speechft_ray.speech.encoders.fbank import FBankEncoder, log_mel
from speechft_ray.speech.encoders.hubert import HUBERT, build
from tests.speech.toys import shared, toy_config, toy_hubert

PROTOTYPE = "fixtures/encoders/tiny_hubert_prototype.s3prl.pt"


def speechlike(samples: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(samples, generator=generator).cumsum(0).sin()


def expert(path: object) -> Any:
    from s3prl.upstream.hubert.expert import UpstreamExpert

    return UpstreamExpert(str(path)).eval()


@pytest.mark.shared
@pytest.mark.filterwarnings("ignore::FutureWarning")  # s3prl: torch.nn.utils.weight_norm, torch.load
@pytest.mark.parametrize("lengths", [(16_000,), (12_000, 12_000), (16_000, 9_000, 12_345, 400)])
def test_hidden_states_are_those_of_s3prl(lengths: tuple[int, ...]) -> None:
    path = shared(PROTOTYPE)
    waves = [speechlike(length, seed) for seed, length in enumerate(lengths)]
    with torch.inference_mode():
        ours = build(read_s3prl(path)).hidden_states(waves)
        theirs = expert(path)(waves)["hidden_states"]
    assert len(ours.states) == len(theirs) == 7
    assert all(torch.equal(mine, other) for mine, other in zip(ours.states, theirs, strict=True))


@pytest.mark.shared
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_normalised_input_is_that_of_s3prl(tmp_path: Any) -> None:
    content = torch.load(shared(PROTOTYPE), weights_only=True)
    content["task_cfg"]["normalize"] = True
    torch.save(content, tmp_path / "normalised.pt")
    waves = [3 * speechlike(8_000) + 0.2]
    with torch.inference_mode():
        ours = build(read_s3prl(tmp_path / "normalised.pt")).hidden_states(waves)
        theirs = expert(tmp_path / "normalised.pt")(waves)["hidden_states"]
        plain = build(read_s3prl(shared(PROTOTYPE))).hidden_states(waves)
    assert torch.equal(ours.states[-1], theirs[-1])
    assert not torch.allclose(ours.states[-1], plain.states[-1])


@pytest.mark.shared
def test_hidden_states_are_those_of_fairseq() -> None:
    """fairseq 0.12.2 computed the figures, for two utterances of which the second is padded."""
    reference = load_file(shared("fixtures/checkpoints/fairseq_features.safetensors"))
    file = shared("fixtures/checkpoints/hubert_base_like.fairseq.pt")
    with torch.serialization.safe_globals([(Dictionary, "fairseq.data.dictionary.Dictionary")]):
        content = torch.load(file, weights_only=True)
    symbols = [content["task_state"]["dictionaries"][0].symbols]
    config = {"model_cfg": content["cfg"]["model"], "task_cfg": content["cfg"]["task"], "dictionaries_symbols": symbols}
    encoder = build(EncoderWeights(family="hubert", config=config, state=content["model"]))
    lengths = reference["lengths"].tolist()
    waves = [wave[:length] for wave, length in zip(reference["wav"], lengths, strict=True)]
    with torch.inference_mode():
        found = encoder.hidden_states(waves)
    for index, frames in enumerate(found.frames.tolist()):
        for layer in (1, 2, 3, 4):
            expected = reference[f"hubert_base_like.layer{layer}"][index, :frames]
            torch.testing.assert_close(found.states[layer][index, :frames], expected, atol=1e-5, rtol=1e-4)


class Dictionary:
    """Stands in for fairseq's class of that name, whose attributes are plain data."""

    symbols: list[str]


def test_the_geometry_of_the_front_end_is_fixed() -> None:
    with pytest.raises(UserError, match="20 ms hop"):
        build(toy_hubert(conv_feature_layers="[(8, 10, 5)] + [(8, 3, 2)] * 4 + [(8, 2, 2)]"))


def test_states_are_kept_by_nobody() -> None:
    """s3prl's hooks would otherwise collect every state of every use of the model, memory without end in a training loop."""
    encoder = build(toy_hubert())
    found = encoder.hidden_states([speechlike(8_000)])
    kept = [weakref.ref(state) for state in found.states]
    assert all(not part._forward_hooks for part in encoder.module().modules())
    encoder.module().encoder(torch.zeros(1, 5, 16))
    assert encoder._expert._hook_hiddens == []
    del found
    gc.collect()
    assert [state() for state in kept] == [None] * 3


@pytest.mark.parametrize("trainable", [True, False])
def test_gradient_reaches_the_front_end_when_it_asks_for_it(trainable: bool) -> None:
    encoder = build(toy_hubert())
    for name, parameter in encoder.module().named_parameters():
        if name.startswith(HUBERT.front_end_prefixes):
            parameter.requires_grad_(trainable)
    encoder.hidden_states([speechlike(8_000)]).states[-1].square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in encoder.module().named_parameters()}
    front_end = [gradient for name, gradient in gradients.items() if name.startswith(HUBERT.front_end_prefixes)]
    assert front_end
    for gradient in front_end:
        assert (gradient is not None and gradient.abs().sum() > 0) if trainable else gradient is None
    assert gradients["encoder.layers.0.fc1.weight"].abs().sum() > 0
    unused = [name for name in gradients if name.startswith(HUBERT.pretraining_only_prefixes)]
    assert unused
    assert all(gradients[name] is None for name in unused), "supervised tuning must leave these at the base value"


def test_training_mode_turns_dropout_on() -> None:
    encoder, wave = build(toy_hubert()), speechlike(8_000)
    encoder.module().train()
    torch.manual_seed(0)
    first, second = (encoder.hidden_states([wave]).states for _ in range(2))
    assert not torch.equal(first[-1], second[-1])
    assert len(first) == 3, "layer dropping must never change the number of states"


def test_layer_drop_is_off_even_when_the_checkpoint_asks_for_it() -> None:
    encoder = build(toy_hubert(encoder_layerdrop=0.99))
    encoder.module().train()
    assert len(encoder.hidden_states([speechlike(4_000)]).states) == 3


def test_depth_of_the_configuration_must_be_that_of_the_weights() -> None:
    weights = toy_hubert()
    lying = {**weights.config, "model_cfg": {**weights.config["model_cfg"], "encoder_layers": 10**9}}
    with pytest.raises(UserError, match="must be 2"):
        build(EncoderWeights(family="hubert", config=lying, state=weights.state))


def test_the_first_five_misfits_are_named() -> None:
    weights = toy_hubert()
    state = {name: tensor for name, tensor in weights.state.items() if ".layers.1." not in name or "fc" in name}
    state["mask_emb"] = torch.zeros(3)
    with pytest.raises(UserError, match=r"is missing.*and \d+ more") as told:
        build(EncoderWeights(family="hubert", config=weights.config, state=state))
    assert str(told.value).count("encoder.layers.1") == 5


def test_a_built_encoder_can_be_used_after_its_weights_changed() -> None:
    """Weight normalisation must be computed at every forward pass, not once when the model was built."""
    encoder, wave = build(toy_hubert()), speechlike(4_000)
    before = encoder.hidden_states([wave]).states[0]
    with torch.no_grad():
        dict(encoder.module().named_parameters())["encoder.pos_conv.0.weight_g"].mul_(3.0)
    assert not torch.allclose(encoder.hidden_states([wave]).states[0], before)


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2", ((512, 10, 5), *[(512, 3, 2)] * 4, *[(512, 2, 2)] * 2)),
        (
            "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]",
            ((512, 10, 5), *[(512, 3, 2)] * 4, *[(512, 2, 2)] * 2),
        ),
        ("[(1, 2, 3), (4, 5, 6),]", ((1, 2, 3), (4, 5, 6))),
        (" [ ( 1 , 2 , 3 ) ] ", ((1, 2, 3),)),
    ],
)
def test_conv_layers_are_read_as_python_would(text: str, layers: tuple[tuple[int, int, int], ...]) -> None:
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


def test_a_configuration_with_code_is_refused_and_not_run(tmp_path: Any) -> None:
    trap = tmp_path / "ran"
    config = toy_config(conv_feature_layers=f"[(8, 10, 5)] + [open({str(trap)!r}, 'w') and (8, 3, 2)]")
    with pytest.raises(UserError, match="Nothing in it was evaluated"):
        build(EncoderWeights(family="hubert", config=config, state=toy_hubert().state))
    assert not trap.exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"encoder_embed_dim": "16"}, "encoder_embed_dim"),
        ({"layer_norm_first": 1}, "layer_norm_first"),
        ({"activation_fn": 3}, "activation_fn"),
        ({"encoder_attention_heads": 3}, "no model"),
        ({"extractor_mode": "magic"}, "no model"),
    ],
)
def test_bad_configuration_values_are_told(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        build(EncoderWeights(family="hubert", config=toy_config(**change), state=toy_hubert().state))


@pytest.mark.parametrize("key", ["model_cfg", "task_cfg", "dictionaries_symbols"])
def test_missing_sections_are_told(key: str) -> None:
    config = copy.deepcopy(toy_config())
    del config[key]
    with pytest.raises(UserError, match=key):
        build(EncoderWeights(family="hubert", config=config, state=toy_hubert().state))


def test_importing_hubert_needs_no_compiled_torchaudio() -> None:
    """In a fresh interpreter in which the extension refuses to load, as with a CUDA wheel on a machine without CUDA."""
    program = (
        "import torch\n"
        "def refuse(path): raise OSError('libc10_cuda.so: cannot open shared object file')\n"
        "torch.ops.load_library = refuse\n"
        "from speechft_ray.speech.encoders.base import FAMILIES\n"
        "assert 'hubert' in FAMILIES.names()\n"
        "import torchaudio\n"
        "assert torchaudio.functional.filtering._IS_TORCHAUDIO_EXT_AVAILABLE is False\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_forced_alignment_refuses_without_the_extension() -> None:
    with pytest.raises(RuntimeError, match="forced_align needs torchaudio's compiled extension"):
        _torchaudio._refuse(forced_align)()


def forced_align() -> None: ...


@pytest.mark.parametrize(("bands", "samples"), [(80, 16_000), (23, 4_321)])
def test_log_mel_is_kaldis(bands: int, samples: int) -> None:
    from torchaudio.compliance.kaldi import fbank

    wave = speechlike(samples)
    theirs = fbank(wave[None], num_mel_bins=bands, window_type="hamming", dither=0.0, snip_edges=True)
    torch.testing.assert_close(log_mel(wave, bands), theirs, atol=2e-3, rtol=0)


def test_fbank_is_normalised_and_independent_of_the_batch() -> None:
    waves = [speechlike(16_000), speechlike(7_000, 1)]
    together = FBankEncoder().hidden_states(waves)
    for index, wave in enumerate(waves):
        alone = FBankEncoder().hidden_states([wave]).states[0][0]
        frames = int(together.frames[index])
        assert torch.equal(together.states[0][index, :frames], alone)
        assert (together.states[0][index, frames:] == 0).all()
        torch.testing.assert_close(alone.mean(dim=0), torch.zeros(80), atol=1e-4, rtol=0)
        torch.testing.assert_close(alone.std(dim=0, correction=0), torch.ones(80), atol=1e-3, rtol=0)


def test_fbank_of_one_frame_is_finite() -> None:
    assert torch.isfinite(FBankEncoder().hidden_states([speechlike(400)]).states[0]).all()
