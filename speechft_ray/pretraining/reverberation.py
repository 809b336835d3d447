"""Reverberation and noise for clean crops; the targets come from the clean speech (as in WavLM,
arXiv 2110.13900).

Clusters of noisy frames encode the noise as much as the phone, and the context of a masked frame
does not determine its noise. Targets from clean speech can be predicted, and the features transfer
to rooms that are not in the training data.
"""

from __future__ import annotations

import numpy as np
import torch

from speechft_ray.core.units import SAMPLE_RATE_HZ

SNR_DB = (3.0, 25.0)
REVERBERATION_SECONDS = (0.08, 0.4)
DIRECT_TO_TAIL_DB = (2.0, 12.0)
"""About the ranges of the synthetic corpora (``speech/synthesis/speakers.py``, ``acoustics.py``),
a little wider at the easy end."""

_TAIL_SAMPLES = round(REVERBERATION_SECONDS[1] * SAMPLE_RATE_HZ)
_LOWEST_HZ = 50.0


def add_reverberation(waves: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Returns crops ``(batch, samples)`` with the reverberation of a room each, and noise, at their
    old loudness.

    Rooms and noise depend on ``rng`` alone. The direct sound comes first in an impulse response, so
    frame labels stay exact.
    """
    batch, samples = waves.shape
    source = torch.Generator().manual_seed(int(rng.integers(2**31)))
    uniform = torch.from_numpy(rng.random((4, batch, 1))).float()
    # Convolve with the impulse responses.
    length = samples + _TAIL_SAMPLES
    spectra = torch.fft.rfft(_impulse_responses(uniform, source), length)
    reverberant = torch.fft.irfft(torch.fft.rfft(waves, length) * spectra, length)[:, :samples]
    # Add noise at a random signal-to-noise ratio.
    noise = _noise(uniform[3], samples, source)
    snr_db = SNR_DB[0] + uniform[2] * (SNR_DB[1] - SNR_DB[0])
    mixed = reverberant / _rms(reverberant) + noise / _rms(noise) * 10 ** (-snr_db / 20)
    # Restore the loudness.
    scaled: torch.Tensor = mixed / _rms(mixed) * _rms(waves)
    return scaled


def _impulse_responses(uniform: torch.Tensor, source: torch.Generator) -> torch.Tensor:
    """Returns room impulse responses ``(batch, samples)``: the direct sound, then noise that falls
    by 60 dB in the reverberation time.

    ``uniform``: random numbers in [0, 1), ``(parameters, batch, 1)``.
    """
    low, high = REVERBERATION_SECONDS
    decay_samples = (low + uniform[0] * (high - low)) * SAMPLE_RATE_HZ
    tail = torch.randn(len(uniform[0]), _TAIL_SAMPLES, generator=source)
    tail *= 10 ** (-3.0 * torch.arange(_TAIL_SAMPLES) / decay_samples)
    tail[:, :32] = 0.0  # the first reflection comes after 2 ms (0.7 m)
    direct_to_tail = 10 ** (
        (DIRECT_TO_TAIL_DB[0] + uniform[1] * (DIRECT_TO_TAIL_DB[1] - DIRECT_TO_TAIL_DB[0])) / 20
    )
    tail /= tail.square().sum(dim=1, keepdim=True).sqrt() * direct_to_tail
    tail[:, 0] = 1.0
    return tail


def _noise(colour: torch.Tensor, samples: int, source: torch.Generator) -> torch.Tensor:
    """Returns noise between white (0) and brown (1), ``(batch, samples)``; ``colour`` ``(batch,
    1)``."""
    white = torch.fft.rfft(torch.randn(len(colour), samples, generator=source))
    hertz = torch.linspace(0.0, SAMPLE_RATE_HZ / 2, white.shape[1]).clamp(min=_LOWEST_HZ)
    noise: torch.Tensor = torch.fft.irfft(white * hertz**-colour, samples)
    return noise


def _rms(waves: torch.Tensor) -> torch.Tensor:
    return waves.square().mean(dim=1, keepdim=True).sqrt().clamp(min=1e-6)
