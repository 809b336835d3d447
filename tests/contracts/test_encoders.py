"""What every registered encoder family promises. A new family is held to all of it; nothing here
names one."""

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
    found = encoder.hidden_states(waves(*lengths))
    assert found.frames.tolist() == [frame_count(length) for length in lengths] == [1, 24, 18, 1, 2]
    assert found.frames.dtype == torch.int64
    assert len(found.states) == encoder.state_count
    for state in found.states:
        assert state.shape == (len(lengths), 24, encoder.dim)
        assert state.dtype == torch.float32
        assert torch.isfinite(state).all()


def test_states_follow_the_sound_and_its_place(encoder: Encoder) -> None:
    """Energy in the second half moves the frames there, in the last state too."""
    quiet, loud = waves(16_000)[0], waves(16_000)[0]
    loud[8_000:] *= torch.linspace(1, 30, 8_000)
    before, after = (encoder.hidden_states([wave]).states[0][0] for wave in (quiet, loud))
    moved = (before - after).norm(dim=1)
    assert moved[30:].mean() > 0
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


def test_eval_mode_is_deterministic_and_is_the_start(encoder: Encoder) -> None:
    batch = waves(4_000)
    assert not encoder.module().training
    first, second = (encoder.hidden_states(batch).states[-1] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("lengths", [(399,), (16_000, 10), (0,), ()])
def test_too_short_is_told(encoder: Encoder, lengths: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="400"):
        encoder.hidden_states(waves(*lengths))
    with pytest.raises(UserError, match="400"):
        encoder.conv_features(waves(*lengths))


def fronts_of(encoder: Encoder, lengths: tuple[int, ...]) -> list[torch.Tensor]:
    return [encoder.conv_features([wave])[0] for wave in waves(*lengths)]


def test_front_then_rest_is_the_whole(encoder: Encoder) -> None:
    batch = waves(6_100, 6_100, 6_100)
    fronts, whole = encoder.conv_features(batch), encoder.hidden_states(batch)
    assert all(
        front.dtype == torch.float32 and front.is_contiguous() and len(front) == 18
        for front in fronts
    )
    found = encoder.hidden_states_from(fronts)
    assert torch.equal(found.frames, whole.frames) and found.frames.dtype == torch.int64
    for mine, theirs in zip(found.states, whole.states, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_padding_reaches_no_valid_frame(encoder: Encoder) -> None:
    """Beside 8 000 samples, s3prl's own count of frames is one too high for most of these."""
    lengths = (6_250, 400, 8_000, 719, 5_999, 7_900)
    fronts = fronts_of(encoder, lengths)
    kept = [front.clone() for front in fronts]
    together = encoder.hidden_states_from(fronts)
    assert together.frames.tolist() == [frame_count(length) for length in lengths]
    for index, wave in enumerate(waves(*lengths)):
        alone = encoder.hidden_states([wave])
        for state, own in zip(together.states, alone.states, strict=True):
            assert state.shape == (len(lengths), 24, encoder.dim)
            torch.testing.assert_close(state[index, : own.shape[1]], own[0], atol=1e-5, rtol=1e-5)
    assert all(torch.equal(front, before) for front, before in zip(fronts, kept, strict=True))


@pytest.mark.parametrize("trainable", [True, False])
def test_front_then_rest_has_the_gradient_of_the_whole(
    trainable: bool, family: EncoderFamily, weights: EncoderWeights
) -> None:
    if not weights.state:
        return
    lengths, found = (4_000, 2_300), []
    for parts in (True, False):
        encoder = family.build(weights)
        for name, parameter in encoder.module().named_parameters():
            parameter.requires_grad_(trainable or not name.startswith(family.front_end_prefixes))
        with torch.inference_mode(parts and not trainable):
            fronts = fronts_of(encoder, lengths) if parts else []
        states = (
            [
                state[: frame_count(length)]
                for state, length in zip(
                    encoder.hidden_states_from(fronts).states[-1], lengths, strict=True
                )
            ]
            if parts
            else [encoder.hidden_states([wave]).states[-1][0] for wave in waves(*lengths)]
        )
        torch.stack(
            [(state * torch.linspace(-1, 2, encoder.dim)).mean() for state in states]
        ).sum().backward()
        found.append(
            {name: parameter.grad for name, parameter in encoder.module().named_parameters()}
        )
    for name, gradient in found[0].items():
        assert (gradient is None) == (found[1][name] is None), name
        if gradient is not None:
            torch.testing.assert_close(gradient, found[1][name], atol=1e-5, rtol=1e-4)


def test_masked_frames_say_nothing_of_their_sound(encoder: Encoder) -> None:
    fronts = fronts_of(encoder, (4_000, 2_300))
    masked = [torch.arange(len(front)) % 3 == 1 for front in fronts]
    if not hasattr(encoder.module(), "mask_emb"):
        with pytest.raises(UserError, match=r"no mask embedding.*another family"):
            encoder.hidden_states_from(fronts, masked)
        return
    changed = [
        front + 3 * torch.sin(front) * mask[:, None]
        for front, mask in zip(fronts, masked, strict=True)
    ]
    plain, once, again = (
        encoder.hidden_states_from(*given).states
        for given in ((fronts,), (fronts, masked), (changed, masked))
    )
    for index, front in enumerate(fronts):
        assert all(
            torch.equal(one[index, : len(front)], two[index, : len(front)])
            for one, two in zip(once, again, strict=True)
        )
        assert not torch.allclose(plain[0][index], once[0][index], atol=1e-2)
    once[-1].square().sum().backward()
    assert encoder.module().mask_emb.grad.abs().sum() > 0


def left_on(module: torch.nn.Module) -> list[Any]:
    """Everything that a call could leave behind, besides values."""
    hooks = [
        (dict(part._forward_hooks), dict(part._forward_pre_hooks)) for part in module.modules()
    ]
    return [
        hooks,
        list(module.named_modules()),
        {name for part in module.modules() for name in vars(part)},
    ]


def test_nothing_is_left_on_the_module_whatever_happens(encoder: Encoder) -> None:
    module, fronts = encoder.module(), fronts_of(encoder, (4_000, 2_300))
    before = left_on(module)
    encoder.hidden_states_from(fronts)
    assert left_on(module) == before
    if hasattr(module, "mask_emb"):
        encoder.hidden_states_from(
            fronts, [torch.ones(len(front), dtype=torch.bool) for front in fronts]
        )
        with pytest.raises(RuntimeError, match="must match"):
            encoder.hidden_states_from(fronts, [torch.ones(3, dtype=torch.bool)] * 2)
        assert left_on(module) == before


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


def test_pretraining_only_parameters_take_no_part_in_features(
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
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)


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
        mine, whole = (
            each.hidden_states(waves(4_000)).states for each in (encoder, family.build(weights))
        )
        pairs = zip(mine, whole, strict=True)
        assert all(torch.equal(state, same) for state, same in pairs)


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


@pytest.mark.parametrize("given", FAMILIES.names())
@pytest.mark.parametrize("wanted", FAMILIES.names())
def test_an_encoder_of_another_family_is_told(wanted: str, given: str) -> None:
    if wanted == given:
        return
    weights, family = toy_encoder(given), FAMILIES.get(wanted)
    with pytest.raises(UserError) as told:
        family.build(EncoderWeights(family=wanted, config=weights.config, state=weights.state))
    if wanted in SIZED and given in SIZED:
        assert (
            f"of a {FAMILIES.get(given).title}, not of a {family.title}: load it as `{given}`"
            in str(told.value)
        )


@pytest.mark.parametrize("trainable", [True, False])
def test_gradient_reaches_what_asks_for_it(
    trainable: bool, family: EncoderFamily, weights: EncoderWeights
) -> None:
    encoder = family.build(weights)
    for name, parameter in encoder.module().named_parameters():
        parameter.requires_grad_(trainable or not name.startswith(family.front_end_prefixes))
    if not weights.state:
        return
    states = encoder.hidden_states(waves(8_000)).states
    (states[-1] * torch.linspace(-1, 2, encoder.dim)).sum().backward()
    for name, parameter in encoder.module().named_parameters():
        if name.startswith(family.pretraining_only_prefixes):
            assert parameter.grad is None, f"supervised tuning must leave {name} at the base value"
        elif name.startswith(family.front_end_prefixes) and not trainable:
            assert parameter.grad is None
        else:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_training_mode_keeps_every_state(encoder: Encoder, weights: EncoderWeights) -> None:
    """Layer dropping, which published configurations have, would change their number."""
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


def test_a_file_keeps_the_encoder(
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
