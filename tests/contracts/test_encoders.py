"""What every registered encoder family promises. A new family adds one line to EXAMPLES and is held to all of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from speechft_ray.core.errors import UserError
from speechft_ray.core.units import frame_count
from speechft_ray.speech.checkpoints.load import weights_fingerprint
from speechft_ray.speech.checkpoints.safetensors_dir import read_encoder, write_encoder
from speechft_ray.speech.encoders.base import FAMILIES, Encoder, EncoderFamily, EncoderWeights
from tests.speech.toys import toy_hubert

EXAMPLES: dict[str, Callable[[], EncoderWeights]] = {
    "fbank": lambda: EncoderWeights(family="fbank", config={}, state={}),
    "hubert": toy_hubert,
}
"""Small weights of each family."""


def test_every_family_has_an_example() -> None:
    assert set(FAMILIES.names()) == set(EXAMPLES), "add the family to EXAMPLES, so that the contracts run on it"


@pytest.fixture(scope="module", params=sorted(EXAMPLES))
def family(request: pytest.FixtureRequest) -> EncoderFamily:
    return FAMILIES.get(request.param)


@pytest.fixture(scope="module")
def weights(family: EncoderFamily) -> EncoderWeights:
    return EXAMPLES[family.name]()


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
    assert not torch.allclose(encoder.hidden_states([quiet]).states[-1], encoder.hidden_states([loud]).states[-1])


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


def test_building_draws_nothing_from_the_global_generator(family: EncoderFamily, weights: EncoderWeights) -> None:
    before = torch.random.get_rng_state()
    family.build(weights)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_prefixes_name_parameters_that_exist_and_do_not_overlap(family: EncoderFamily, weights: EncoderWeights) -> None:
    front_end = {name for name in weights.state if name.startswith(family.front_end_prefixes)}
    pretraining = {name for name in weights.state if name.startswith(family.pretraining_only_prefixes)}
    assert not front_end & pretraining
    if weights.state:
        assert front_end
        assert pretraining
        assert set(weights.state) - front_end - pretraining


def test_pretraining_only_parameters_take_no_part_in_features(family: EncoderFamily, weights: EncoderWeights) -> None:
    noisy = {
        name: tensor + 1.0 if name.startswith(family.pretraining_only_prefixes) else tensor
        for name, tensor in weights.state.items()
    }
    other = family.build(EncoderWeights(family=weights.family, config=weights.config, state=noisy))
    batch = waves(4_000)
    pairs = zip(family.build(weights).hidden_states(batch).states, other.hidden_states(batch).states, strict=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)


def test_missing_unexpected_and_misshapen_parameters_are_named(family: EncoderFamily, weights: EncoderWeights) -> None:
    faulty = {"stray.weight": torch.zeros(2), **weights.state}
    if weights.state:
        gone = next(name for name in faulty if name.startswith(family.front_end_prefixes))
        del faulty[gone]
    with pytest.raises(UserError, match=r"stray\.weight"):
        family.build(EncoderWeights(family=weights.family, config=weights.config, state=faulty))


def test_a_file_keeps_the_encoder(family: EncoderFamily, weights: EncoderWeights, tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    write_encoder(path, weights, {})
    loaded = read_encoder(path)
    assert weights_fingerprint(loaded) == weights_fingerprint(weights)
    batch = waves(4_000)
    again, first = (family.build(some).hidden_states(batch).states[-1] for some in (loaded, weights))
    assert torch.equal(again, first)
