"""Tests that every registered encoder family has to pass. Nothing here names a family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from speechft_ray.core.errors import UserError
from speechft_ray.core.specs import CorpusSpec, EvalSpec
from speechft_ray.core.units import frame_count
from speechft_ray.speech.checkpoints.load import weights_fingerprint
from speechft_ray.speech.checkpoints.safetensors_dir import read_encoder, write_encoder
from speechft_ray.speech.encoders.base import FAMILIES, Encoder, EncoderFamily, EncoderWeights
from speechft_ray.superb.evaluate import evaluate
from tests.speech.toy_models import add_noise, toy_encoder
from tests.superb.toy_models import toy_corpus

SIZED = [name for name, family in FAMILIES.items() if family.example_config is not None]
CASES = [
    (name, large)
    for name in FAMILIES.names()
    for large in ((False, True) if name in SIZED else (False,))
]


@pytest.fixture(
    scope="module",
    params=CASES,
    ids=[f"{name}-{'large' if large else 'base'}" for name, large in CASES],
)
def weights(request: pytest.FixtureRequest) -> EncoderWeights:
    name, large = request.param
    return add_noise(toy_encoder(name, large=large))


@pytest.fixture
def family(weights: EncoderWeights) -> EncoderFamily:
    return FAMILIES.get(weights.family)


@pytest.fixture
def encoder(family: EncoderFamily, weights: EncoderWeights) -> Encoder:
    return family.build(weights)


def waves(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(lengths))
    return [0.1 * torch.randn(length, generator=generator) for length in lengths]


def test_states_have_the_promised_shape(encoder: Encoder) -> None:
    lengths = (400, 8_000, 5_999, 719, 720)
    output = encoder.hidden_states(waves(*lengths))
    frames = [frame_count(length) for length in lengths]
    assert output.frames.tolist() == frames == [1, 24, 18, 1, 2]
    assert output.frames.dtype == torch.int64
    assert len(output.states) == encoder.state_count
    for state in output.states:
        assert state.shape == (len(lengths), 24, encoder.dim)
        assert state.dtype == torch.float32
        assert torch.isfinite(state).all()


def test_states_follow_the_signal_and_its_position(encoder: Encoder) -> None:
    """Energy in the second half changes the frames there, in the last state too."""
    quiet, loud = waves(16_000)[0], waves(16_000)[0]
    loud[8_000:] *= torch.linspace(1, 30, 8_000)
    before, after = (encoder.hidden_states([wave]).states[0][0] for wave in (quiet, loud))
    change = (before - after).norm(dim=1)
    assert change[30:].mean() > 0
    assert not torch.allclose(
        encoder.hidden_states([quiet]).states[-1], encoder.hidden_states([loud]).states[-1]
    )


def test_same_length_batches_are_exact(encoder: Encoder) -> None:
    first, second = waves(6_400, 6_400)
    together = encoder.hidden_states([first, second])
    for index, wave in enumerate((first, second)):
        alone = encoder.hidden_states([wave])
        for state, own in zip(together.states, alone.states, strict=True):
            torch.testing.assert_close(state[index], own[0], atol=2e-5, rtol=1e-5)


def test_a_built_encoder_is_in_eval_mode_and_deterministic(encoder: Encoder) -> None:
    batch = waves(4_000)
    assert not encoder.module().training
    first, second = (encoder.hidden_states(batch).states[-1] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("lengths", [(399,), (16_000, 10), (0,), ()])
def test_a_waveform_that_is_too_short_raises(encoder: Encoder, lengths: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="400"):
        encoder.hidden_states(waves(*lengths))
    with pytest.raises(UserError, match="400"):
        encoder.conv_features(waves(*lengths))


def compute_features(encoder: Encoder, lengths: tuple[int, ...]) -> list[torch.Tensor]:
    return [encoder.conv_features([wave])[0] for wave in waves(*lengths)]


def test_front_end_and_rest_give_the_hidden_states_of_the_whole(encoder: Encoder) -> None:
    batch = waves(6_100, 6_100, 6_100)
    features, whole = encoder.conv_features(batch), encoder.hidden_states(batch)
    assert all(
        item.dtype == torch.float32 and item.is_contiguous() and len(item) == 18
        for item in features
    )
    output = encoder.hidden_states_from(features)
    assert torch.equal(output.frames, whole.frames) and output.frames.dtype == torch.int64
    for state, expected in zip(output.states, whole.states, strict=True):
        torch.testing.assert_close(state, expected, atol=1e-5, rtol=1e-5)


def test_padding_affects_no_valid_frame(encoder: Encoder) -> None:
    """Beside 8 000 samples, s3prl's own count of frames is one too high for most of these."""
    lengths = (6_250, 400, 8_000, 719, 5_999, 7_900)
    features = compute_features(encoder, lengths)
    copies = [item.clone() for item in features]
    together = encoder.hidden_states_from(features)
    assert together.frames.tolist() == [frame_count(length) for length in lengths]
    for index, wave in enumerate(waves(*lengths)):
        alone = encoder.hidden_states([wave])
        for state, own in zip(together.states, alone.states, strict=True):
            assert state.shape == (len(lengths), 24, encoder.dim)
            torch.testing.assert_close(state[index, : own.shape[1]], own[0], atol=1e-5, rtol=1e-5)
    assert all(torch.equal(item, copy) for item, copy in zip(features, copies, strict=True))


def test_utterances_of_any_lengths_share_a_batch(encoder: Encoder) -> None:
    """From one frame to 20 s, the published bound of most corpora; the group norm of Base over the
    frames of each utterance alone, and the order of lengths does not matter. Products of other
    shapes round in another order: 1.1e-5 is the largest difference that was seen."""
    lengths = (719, 320_000, 400, 48_123, 160_001, 16_000)
    batch = [
        3 * wave.cumsum(0).sin() + 0.2 * place for place, wave in enumerate(waves(*lengths))
    ]  # other loudness and another mean in each
    with torch.inference_mode():
        together, fronts = encoder.hidden_states(batch), encoder.conv_features(batch)
        assert together.frames.tolist() == [frame_count(length) for length in lengths]
        assert all(torch.isfinite(state).all() for state in together.states)
        for index, wave in enumerate(batch):
            alone = encoder.hidden_states([wave])
            (front,) = encoder.conv_features([wave])
            torch.testing.assert_close(fronts[index], front, atol=1e-5, rtol=1e-5)
            for state, own in zip(together.states, alone.states, strict=True):
                torch.testing.assert_close(
                    state[index, : own.shape[1]], own[0], atol=2e-5, rtol=1e-5
                )


@pytest.mark.parametrize("trainable", [True, False])
def test_front_end_and_rest_have_the_gradient_of_the_whole(
    trainable: bool, family: EncoderFamily, weights: EncoderWeights
) -> None:
    if not weights.state:
        return
    lengths: tuple[int, ...] = (4_000, 2_300)
    gradients = []
    for parts in (True, False):
        encoder = family.build(weights)
        for name, parameter in encoder.module().named_parameters():
            parameter.requires_grad_(trainable or not name.startswith(family.front_end_prefixes))
        with torch.inference_mode(parts and not trainable):
            features = encoder.conv_features(waves(*lengths)) if parts else []
        states = (
            [
                state[: frame_count(length)]
                for state, length in zip(
                    encoder.hidden_states_from(features).states[-1], lengths, strict=True
                )
            ]
            if parts
            else [encoder.hidden_states([wave]).states[-1][0] for wave in waves(*lengths)]
        )
        torch.stack(
            [(state * torch.linspace(-1, 2, encoder.dim)).mean() for state in states]
        ).sum().backward()  # type: ignore[no-untyped-call]
        gradients.append(
            {name: parameter.grad for name, parameter in encoder.module().named_parameters()}
        )
    for name, gradient in gradients[0].items():
        assert (gradient is None) == (gradients[1][name] is None), name
        if gradient is not None:
            torch.testing.assert_close(gradient, gradients[1][name], atol=1e-5, rtol=1e-4)


def test_features_at_masked_frames_have_no_influence(encoder: Encoder) -> None:
    features = compute_features(encoder, (4_000, 2_300))
    masks = [torch.arange(len(item)) % 3 == 1 for item in features]
    if not hasattr(encoder.module(), "mask_emb"):
        with pytest.raises(UserError, match=r"no mask embedding.*another family"):
            encoder.hidden_states_from(features, masks)
        return
    changed = [
        item + 3 * torch.sin(item) * mask[:, None]
        for item, mask in zip(features, masks, strict=True)
    ]
    plain, once, again = (
        encoder.hidden_states_from(*arguments).states
        for arguments in ((features,), (features, masks), (changed, masks))
    )
    for index, item in enumerate(features):
        assert all(
            torch.equal(one[index, : len(item)], two[index, : len(item)])
            for one, two in zip(once, again, strict=True)
        )
        assert not torch.allclose(plain[0][index], once[0][index], atol=1e-2)
    once[-1].square().sum().backward()  # type: ignore[no-untyped-call]
    gradient = dict(encoder.module().named_parameters())["mask_emb"].grad
    assert gradient is not None and gradient.abs().sum() > 0


def list_attachments(module: torch.nn.Module) -> list[Any]:
    """Returns hooks, submodules and attributes: what a call could leave on a module."""
    hooks = [
        (dict(part._forward_hooks), dict(part._forward_pre_hooks)) for part in module.modules()
    ]
    return [
        hooks,
        list(module.named_modules()),
        {name for part in module.modules() for name in vars(part)},
    ]


def test_nothing_is_left_on_the_module_whatever_happens(encoder: Encoder) -> None:
    module, features = encoder.module(), compute_features(encoder, (4_000, 2_300))
    before = list_attachments(module)
    encoder.hidden_states_from(features)
    assert list_attachments(module) == before
    encoder.hidden_states(waves(4_000, 2_300))
    assert list_attachments(module) == before
    if hasattr(module, "mask_emb"):
        encoder.hidden_states_from(
            features, [torch.ones(len(item), dtype=torch.bool) for item in features]
        )
        with pytest.raises(RuntimeError, match="must match"):
            encoder.hidden_states_from(features, [torch.ones(3, dtype=torch.bool)] * 2)
        assert list_attachments(module) == before


def test_parameter_names_are_the_checkpoints_own(encoder: Encoder, weights: EncoderWeights) -> None:
    state = encoder.module().state_dict()
    assert set(state) == set(weights.state)
    assert all(torch.equal(state[name], tensor) for name, tensor in weights.state.items())


def test_built_encoders_share_no_memory(family: EncoderFamily, weights: EncoderWeights) -> None:
    before = weights_fingerprint(weights)
    with torch.no_grad():
        for parameter in family.build(weights).module().parameters():
            parameter.add_(1.0)
    assert weights_fingerprint(weights) == before


def test_building_draws_nothing_from_the_global_generator(
    family: EncoderFamily, weights: EncoderWeights
) -> None:
    before = torch.random.get_rng_state()
    family.build(weights)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_prefixes_name_parameters_that_exist_and_do_not_overlap(
    family: EncoderFamily, weights: EncoderWeights
) -> None:
    front_end = {name for name in weights.state if name.startswith(family.front_end_prefixes)}
    pretraining = {
        name for name in weights.state if name.startswith(family.pretraining_only_prefixes)
    }
    assert not front_end & pretraining
    assert bool(front_end) == bool(family.front_end_prefixes)
    assert bool(pretraining) == bool(family.pretraining_only_prefixes)
    if weights.state:
        assert set(weights.state) - front_end - pretraining


def test_pretraining_only_parameters_do_not_affect_features(
    family: EncoderFamily, weights: EncoderWeights
) -> None:
    noisy = {
        name: tensor + 1.0 if name.startswith(family.pretraining_only_prefixes) else tensor
        for name, tensor in weights.state.items()
    }
    other = family.build(EncoderWeights(family=weights.family, config=weights.config, state=noisy))
    batch = waves(4_000)
    pairs = zip(
        family.build(weights).hidden_states(batch).states,
        other.hidden_states(batch).states,
        strict=True,
    )
    assert all(torch.equal(state, expected) for state, expected in pairs)


def test_unexpected_parameters_are_named(family: EncoderFamily, weights: EncoderWeights) -> None:
    faulty = {"stray.weight": torch.zeros(2), **weights.state}
    with pytest.raises(UserError, match=r"stray\.weight"):
        family.build(EncoderWeights(family=weights.family, config=weights.config, state=faulty))


def test_missing_and_misshapen_parameters_are_named(
    family: EncoderFamily, weights: EncoderWeights
) -> None:
    for name, tensor in weights.state.items():
        without = {other: value for other, value in weights.state.items() if other != name}
        misshapen = {**weights.state, name: torch.zeros(*tensor.shape, 2)}
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            family.build(
                EncoderWeights(family=weights.family, config=weights.config, state=misshapen)
            )
        if not name.startswith(family.pretraining_only_prefixes):
            with pytest.raises(UserError, match=name.replace(".", r"\.")):
                family.build(
                    EncoderWeights(family=weights.family, config=weights.config, state=without)
                )
        if "layers.1." in name:
            break  # a second layer has nothing that the first has not


def test_weights_without_pretraining_parameters_make_the_same_features(
    family: EncoderFamily, weights: EncoderWeights
) -> None:
    pretraining = [
        name for name in weights.state if name.startswith(family.pretraining_only_prefixes)
    ]
    for gone in ([], pretraining[:1], pretraining):
        state = {name: tensor for name, tensor in weights.state.items() if name not in gone}
        encoder = family.build(
            EncoderWeights(family=weights.family, config=weights.config, state=state)
        )
        assert set(encoder.module().state_dict()) == set(state)
        states, expected = (
            each.hidden_states(waves(4_000)).states for each in (encoder, family.build(weights))
        )
        pairs = zip(states, expected, strict=True)
        assert all(torch.equal(state, other) for state, other in pairs)


def test_the_description_is_that_of_the_built_encoder(
    family: EncoderFamily, weights: EncoderWeights
) -> None:
    shape, encoder = family.describe(weights.config), family.build(weights)
    assert (shape.dim, shape.state_count) == (encoder.dim, encoder.state_count)
    stored = {name.split(".")[2] for name in weights.state if name.startswith("encoder.layers.")}
    assert shape.layers == len(stored)
    convolutions = [
        name
        for name in weights.state
        if name.startswith(family.front_end_prefixes) and weights.state[name].ndim == 3
    ]
    assert len(shape.conv_layers) == len(convolutions)
    assert (shape.extractor_mode is None) == (not family.front_end_prefixes)
    loud = [10 * wave for wave in waves(4_000)]
    pairs = zip(
        encoder.hidden_states(loud).states, encoder.hidden_states(waves(4_000)).states, strict=True
    )
    if shape.normalizes_waveform:
        assert all(torch.allclose(louder, plain, atol=1e-3) for louder, plain in pairs)


@pytest.mark.parametrize("name", SIZED)
@pytest.mark.parametrize(
    ("layers", "dim", "large"), [(4, 64, False), (12, 768, False), (24, 1024, True), (1, 16, True)]
)
def test_any_size_can_be_described(name: str, layers: int, dim: int, large: bool) -> None:
    family = FAMILIES.get(name)
    assert family.example_config is not None
    config = family.example_config(layers, dim, large)
    shape = family.describe(config)
    assert (shape.layers, shape.dim, shape.state_count, shape.layer_norm_first) == (
        layers,
        dim,
        layers + 1,
        large,
    )
    assert [other for other, part in FAMILIES.items() if part.matches(config)] == [name]


@pytest.mark.parametrize("name", SIZED)
def test_initial_weights_follow_the_seed_alone(name: str) -> None:
    before = torch.random.get_rng_state()
    first, same, other = (
        toy_encoder(name, seed=3),
        toy_encoder(name, seed=3),
        toy_encoder(name, seed=4),
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert weights_fingerprint(first) == weights_fingerprint(same) != weights_fingerprint(other)
    assert all(torch.isfinite(tensor).all() for tensor in first.state.values())


@pytest.mark.parametrize("other", FAMILIES.names())
@pytest.mark.parametrize("name", FAMILIES.names())
def test_an_encoder_of_another_family_raises(name: str, other: str) -> None:
    if name == other:
        return
    weights, family = toy_encoder(other), FAMILIES.get(name)
    with pytest.raises(UserError) as error:
        family.build(EncoderWeights(family=name, config=weights.config, state=weights.state))
    if name in SIZED and other in SIZED:
        title = FAMILIES.get(other).title
        sentence = f"of a {title}, not of a {family.title}: load it as `{other}`"
        assert sentence in str(error.value)


@pytest.mark.parametrize("trainable", [True, False])
def test_gradient_flows_to_parameters_that_require_it(
    trainable: bool, family: EncoderFamily, weights: EncoderWeights
) -> None:
    encoder = family.build(weights)
    for name, parameter in encoder.module().named_parameters():
        parameter.requires_grad_(trainable or not name.startswith(family.front_end_prefixes))
    if not weights.state:
        return
    states = encoder.hidden_states(waves(8_000)).states
    loss = (states[-1] * torch.linspace(-1, 2, encoder.dim)).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in encoder.module().named_parameters():
        if name.startswith(family.pretraining_only_prefixes):
            assert parameter.grad is None, f"supervised tuning must leave {name} at the base value"
        elif name.startswith(family.front_end_prefixes) and not trainable:
            assert parameter.grad is None
        else:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_training_mode_keeps_every_state(encoder: Encoder, weights: EncoderWeights) -> None:
    """Layer drop, which published configurations have, would change their number."""
    encoder.module().train()
    for _ in range(3):
        assert len(encoder.hidden_states(waves(2_000)).states) == encoder.state_count


def test_an_evaluation_runs(encoder: Encoder) -> None:
    spec = EvalSpec(task="sid", corpus=CorpusSpec(), updates=4)
    facts: dict[str, Any] = evaluate(
        spec,
        encoder,
        toy_corpus({"train": 8, "dev": 4, "test": 4}),
        torch.device("cpu"),
        lambda counts: None,
    )
    assert len(facts["layer_weights"][0]) == encoder.state_count
    assert all(0 <= value <= 100 for score in facts["scores"] for value in score["values"])


def test_a_file_holds_the_whole_encoder(
    family: EncoderFamily, weights: EncoderWeights, tmp_path: Path
) -> None:
    path = tmp_path / "encoder.safetensors"
    write_encoder(path, weights, {})
    loaded = read_encoder(path)
    assert weights_fingerprint(loaded) == weights_fingerprint(weights)
    batch = waves(4_000)
    again, first = (
        family.build(some).hidden_states(batch).states[-1] for some in (loaded, weights)
    )
    assert torch.equal(again, first)
