"""Rooms and noise for clean crops: the encoder hears them, the targets come from the clean speech
(as WavLM, arXiv 2110.13900).

Clusters of noisy frames name the noise as much as the phone, and nothing around a hidden frame
tells its noise; targets from clean speech can be learned, and what is learned holds in rooms that
the encoder never heard.
"""

from __future__ import annotations

import numpy as np
import torch

from speechft_ray.core.units import SAMPLE_RATE_HZ

SNR_DB = (3.0, 25.0)
REVERBERATION_SECONDS = (0.08, 0.4)
DIRECT_TO_TAIL_DB = (2.0, 12.0)
"""About the ranges of the synthetic corpora (``corpora/_world.py``, ``_acoustics.py``), a little
wider at the easy end."""

_TAIL_SAMPLES = round(REVERBERATION_SECONDS[1] * SAMPLE_RATE_HZ)
_LOWEST_HZ = 50.0


def in_rooms(waves: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Returns clean crops ``(batch, samples)`` as heard in a room each, with noise, at their old
    loudness.

    Rooms and noise follow from ``rng`` alone. The direct sound comes first in a room, so frame
    labels stay exact.
    """
    batch, samples = waves.shape
    source = torch.Generator().manual_seed(int(rng.integers(2**31)))
    drawn = torch.from_numpy(rng.random((4, batch, 1))).float()
    length = samples + _TAIL_SAMPLES
    heard = torch.fft.irfft(
        torch.fft.rfft(waves, length) * torch.fft.rfft(_rooms(drawn, source), length), length
    )[:, :samples]
    noise = _noise(drawn[3], samples, source)
    snr_db = SNR_DB[0] + drawn[2] * (SNR_DB[1] - SNR_DB[0])
    mixed = heard / _loudness(heard) + noise / _loudness(noise) * 10 ** (-snr_db / 20)
    louder: torch.Tensor = mixed / _loudness(mixed) * _loudness(waves)
    return louder


def _rooms(drawn: torch.Tensor, source: torch.Generator) -> torch.Tensor:
    """Impulse responses ``(batch, samples)``: the direct sound, then noise that falls by 60 dB in
    the reverberation time."""
    low, high = REVERBERATION_SECONDS
    decay_samples = (low + drawn[0] * (high - low)) * SAMPLE_RATE_HZ
    tail = torch.randn(len(drawn[0]), _TAIL_SAMPLES, generator=source)
    tail *= 10 ** (-3.0 * torch.arange(_TAIL_SAMPLES) / decay_samples)
    tail[:, :32] = 0.0  # the first reflection comes after 2 ms (0.7 m)
    direct_to_tail = 10 ** (
        (DIRECT_TO_TAIL_DB[0] + drawn[1] * (DIRECT_TO_TAIL_DB[1] - DIRECT_TO_TAIL_DB[0])) / 20
    )
    tail /= tail.square().sum(dim=1, keepdim=True).sqrt() * direct_to_tail
    tail[:, 0] = 1.0
    return tail


def _noise(colour: torch.Tensor, samples: int, source: torch.Generator) -> torch.Tensor:
    """Noise between white and brown, ``(batch, samples)``; ``colour`` in [0, 1], ``(batch, 1)``."""
    white = torch.fft.rfft(torch.randn(len(colour), samples, generator=source))
    hertz = torch.linspace(0.0, SAMPLE_RATE_HZ / 2, white.shape[1]).clamp(min=_LOWEST_HZ)
    noise: torch.Tensor = torch.fft.irfft(white * hertz**-colour, samples)
    return noise


def _loudness(waves: torch.Tensor) -> torch.Tensor:
    return waves.square().mean(dim=1, keepdim=True).sqrt().clamp(min=1e-6)
