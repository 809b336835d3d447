"""Reverberation and noise of pre-training, against plain convolution and separate energies."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from speechft_ray.pretraining import reverberation
from speechft_ray.pretraining.reverberation import add_reverberation

SAMPLES = 16_000


def clean(batch: int = 4, samples: int = SAMPLES) -> torch.Tensor:
    """Returns noise with another loudness in each row."""
    draw = torch.randn(batch, samples, generator=torch.Generator().manual_seed(0))
    return draw * torch.logspace(-3, -1, batch)[:, None]


def loudness(waves: torch.Tensor) -> torch.Tensor:
    return waves.double().square().mean(dim=1).sqrt()


def impulse_responses(batch: int, seed: int = 0) -> torch.Tensor:
    draw = np.random.default_rng(seed)
    return reverberation._impulse_responses(
        torch.from_numpy(draw.random((4, batch, 1))).float(), torch.Generator().manual_seed(seed)
    )


def test_loudness_and_shape_are_kept() -> None:
    waves = clean()
    reverberant = add_reverberation(waves, np.random.default_rng(0))
    assert reverberant.shape == waves.shape
    assert reverberant.dtype == torch.float32
    torch.testing.assert_close(loudness(reverberant), loudness(waves), rtol=1e-4, atol=0)


def test_rooms_follow_from_the_seed_alone() -> None:
    waves = clean()
    first = add_reverberation(waves, np.random.default_rng(3))
    torch.manual_seed(99)  # the global generator is not used
    before = torch.random.get_rng_state()
    again = add_reverberation(waves, np.random.default_rng(3))
    assert torch.equal(first, again)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.allclose(first, add_reverberation(waves, np.random.default_rng(4)))


def test_every_crop_gets_a_room_and_noise_of_its_own() -> None:
    reverberant = add_reverberation(clean(1).expand(3, -1), np.random.default_rng(0))
    assert not torch.allclose(reverberant[0], reverberant[1])
    assert not torch.allclose(reverberant[1], reverberant[2])


def test_the_input_is_not_changed() -> None:
    waves = clean()
    add_reverberation(waves, np.random.default_rng(0))
    assert torch.equal(waves, clean())


def test_silence_stays_finite() -> None:
    assert torch.isfinite(
        add_reverberation(torch.zeros(2, SAMPLES), np.random.default_rng(0))
    ).all()


def test_the_direct_sound_comes_first_and_the_first_reflection_after_2_ms() -> None:
    responses = impulse_responses(16)
    assert torch.equal(responses[:, 0], torch.ones(16))
    assert (responses[:, 1:32] == 0).all()
    assert (responses[:, 32:64] != 0).any(dim=1).all()


def test_tails_have_the_promised_strength() -> None:
    responses = impulse_responses(400).double()
    ratio_db = -10 * responses[:, 1:].square().sum(dim=1).log10()
    low, high = reverberation.DIRECT_TO_TAIL_DB
    assert low - 1e-3 <= ratio_db.min() < low + 0.5
    assert high - 0.5 < ratio_db.max() <= high + 1e-3


def test_tails_fall_by_60_db_in_the_reverberation_time() -> None:
    """The slope of a least-squares line through the logarithm of the energy in 5 ms blocks,
    averaged over rooms of one time."""
    low, high = reverberation.REVERBERATION_SECONDS
    for place in (0.25, 1.0):
        uniform = torch.tensor([place, 0.5, 0.5, 0.5])[:, None, None].expand(4, 400, 1)
        tails = reverberation._impulse_responses(
            uniform, torch.Generator().manual_seed(0)
        ).double()[:, 80:]
        blocks = (
            tails[:, : len(tails[0]) // 80 * 80]
            .reshape(400, -1, 80)
            .square()
            .sum(dim=2)
            .mean(dim=0)
        )
        count = min(len(blocks), round((low + place * (high - low)) * 200))
        slope_db = np.polyfit(np.arange(count) * 0.005, 10 * np.log10(blocks[:count].numpy()), 1)[0]
        assert -60 / slope_db == pytest.approx(low + place * (high - low), rel=0.03)


def test_a_room_is_a_convolution_and_labels_stay_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without noise the output equals numpy's convolution, cropped; leading silence stays."""
    monkeypatch.setattr(reverberation, "SNR_DB", (200.0, 200.0))
    waves = clean(2, 4_000)
    waves[:, :1_000] = 0.0
    calls: list[torch.Tensor] = []
    original = reverberation._impulse_responses

    def record(uniform: torch.Tensor, source: torch.Generator) -> torch.Tensor:
        calls.append(original(uniform, source))
        return calls[-1]

    monkeypatch.setattr(reverberation, "_impulse_responses", record)
    reverberant = add_reverberation(waves, np.random.default_rng(0))
    for wave, response, output in zip(waves, calls[0], reverberant, strict=True):
        expected = np.convolve(wave.double().numpy(), response.double().numpy())[:4_000]
        expected *= np.sqrt(np.mean(wave.double().numpy() ** 2) / np.mean(expected**2))
        np.testing.assert_allclose(output.numpy(), expected, atol=1e-4 * np.abs(expected).max())
        assert output[:1_000].abs().max() < 1e-5 * output.abs().max()


@pytest.mark.parametrize("snr_db", [0.0, 10.0, 20.0])
def test_noise_has_the_promised_strength(snr_db: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits the tone and subtracts it: the rest is the noise."""
    monkeypatch.setattr(reverberation, "SNR_DB", (snr_db, snr_db))
    monkeypatch.setattr(
        reverberation,
        "_impulse_responses",
        lambda uniform, source: torch.nn.functional.one_hot(torch.zeros(8).long(), 6_400).float(),
    )
    angle = 2 * np.pi * 4_000 * np.arange(SAMPLES) / 16_000
    tone = torch.from_numpy(np.sin(angle)).float().expand(8, -1)
    reverberant = add_reverberation(tone, np.random.default_rng(0)).double().numpy()
    basis = np.stack([np.sin(angle), np.cos(angle)], axis=1)
    fitted = reverberant @ basis @ basis.T * 2 / SAMPLES
    snr_of_rows_db = 10 * np.log10(
        np.square(fitted).sum(axis=1) / np.square(reverberant - fitted).sum(axis=1)
    )
    np.testing.assert_allclose(snr_of_rows_db, snr_db, atol=0.3)


def test_noise_lies_between_white_and_brown() -> None:
    """Energy per octave from 250 Hz on: rising 3 dB for white noise, falling 3 dB for brown."""
    noise = reverberation._noise(
        torch.tensor([[0.0], [1.0]]), 160_000, torch.Generator().manual_seed(0)
    ).double()
    power = torch.fft.rfft(noise).abs().square()
    edges = [10 * hertz for hertz in (250, 500, 1_000, 2_000, 4_000)]  # bins of 0.1 Hz
    octaves = torch.stack(
        [power[:, begin:end].sum(dim=1) for begin, end in itertools.pairwise(edges)], dim=1
    )
    steps_db = (10 * octaves.log10()).diff(dim=1)
    torch.testing.assert_close(
        steps_db[0], torch.full((3,), 3.0103, dtype=torch.float64), atol=0.5, rtol=0
    )
    torch.testing.assert_close(
        steps_db[1], torch.full((3,), -3.0103, dtype=torch.float64), atol=0.5, rtol=0
    )
