"""FBank: log-mel energies, the zero of the SUPERB score. It has no parameters.

80 mel bands, 25 ms windows every 10 ms, of which every second frame is used. So frame i covers the
same samples (320 i to 320 i + 400) as that of a HuBERT front end: ``floor((samples - 400) / 320) +
1`` frames. Each band is normalised to zero mean and unit variance over the utterance. Without that,
loudness and channel alone identify speakers better than a small encoder does.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from speechft_ray.core.errors import UserError
from speechft_ray.core.units import FRAME_FIELD_SAMPLES, SAMPLE_RATE_HZ
from speechft_ray.speech.encoders.base import (
    FAMILIES,
    EncoderFamily,
    EncoderWeights,
    HiddenStates,
    Shape,
    no_mask_embedding_error,
    too_short_error,
)

BANDS = 80
"""As in ESPnet's and s3prl's filter-bank baselines (s3prl ``upstream/baseline/fbank.yaml`` has 80
bins, 25/10 ms)."""

HOP_SAMPLES = 160
_FFT_SAMPLES = 512
_LOW_HZ = 20.0
_PRE_EMPHASIS = 0.97
_FLOOR = torch.finfo(torch.float32).eps
_VARIANCE_FLOOR = 1e-10


def log_mel(wave: torch.Tensor, bands: int = BANDS) -> torch.Tensor:
    """Returns log-mel energies of one waveform ``(samples,)`` as ``(frames at 10 ms, bands)``.

    Kaldi's definition (compute-fbank-feats without dither): mean removed per window, pre-emphasis
    0.97, Hamming window, power spectrum of 512 points, triangular bands from 20 Hz to 8 kHz on the
    mel scale 1127 ln(1 + f / 700).
    """
    frames = wave.unfold(0, FRAME_FIELD_SAMPLES, HOP_SAMPLES)
    frames = frames - frames.mean(dim=1, keepdim=True)
    before = torch.cat([frames[:, :1], frames[:, :-1]], dim=1)
    window = torch.hamming_window(FRAME_FIELD_SAMPLES, periodic=False, device=wave.device)
    spectrum = torch.fft.rfft((frames - _PRE_EMPHASIS * before) * window, n=_FFT_SAMPLES)
    power = spectrum.real.square() + spectrum.imag.square()
    energies: torch.Tensor = power @ _mel_bands(bands).to(wave.device)
    return energies.clamp_min(_FLOOR).log()


@functools.cache
def _mel_bands(bands: int) -> torch.Tensor:
    """Triangular weights ``(257, bands)``, computed in float64."""
    low, high = _mel(_LOW_HZ), _mel(SAMPLE_RATE_HZ / 2)
    edges = torch.linspace(low, high, bands + 2, dtype=torch.float64)
    bin_hz = (
        torch.arange(_FFT_SAMPLES // 2 + 1, dtype=torch.float64) * SAMPLE_RATE_HZ / _FFT_SAMPLES
    )
    bin_mel = 1127.0 * torch.log1p(bin_hz / 700.0)
    rising = (bin_mel[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bin_mel[:, None]) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp_min(0).to(torch.float32)


def _mel(hz: float) -> float:
    return 1127.0 * math.log1p(hz / 700.0)


def describe(config: Mapping[str, Any]) -> Shape:
    """Returns the shape. Raises ``UserError`` for a configuration with options."""
    build(EncoderWeights(family="fbank", config=config, state={}))
    return Shape(layers=0, dim=BANDS, state_count=1)


def build(weights: EncoderWeights) -> FBankEncoder:
    """Returns the encoder. Raises ``UserError`` for weights or options, since it has none."""
    if weights.state or weights.config:
        names = ", ".join(sorted([*weights.state, *weights.config])[:5])
        raise UserError(
            f"the encoder family `fbank` has neither parameters nor options, but was given {names}."
        )
    return FBankEncoder()


class FBankEncoder:
    """Log-mel energies as the one hidden state."""

    dim = BANDS
    state_count = 1

    def __init__(self) -> None:
        self._module = torch.nn.Module().eval()

    def hidden_states(self, waves: Sequence[torch.Tensor]) -> HiddenStates:
        """Encodes waveforms, each ``(samples,)`` float32 at 16 kHz, as one state ``(batch, frames,
        80)``, zero beyond an utterance.

        Each utterance is computed alone, so its frames do not depend on the batch. Raises
        ``UserError`` for an empty batch and for a waveform shorter than 400 samples.
        """
        return self.hidden_states_from(self.conv_features(waves))

    def conv_features(self, waves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Returns the normalised energies of each waveform, ``(frames, 80)``: its only hidden
        state."""
        shortest = min((wave.shape[0] for wave in waves), default=0)
        if shortest < FRAME_FIELD_SAMPLES:
            raise too_short_error("FBank", shortest)
        with torch.autocast(waves[0].device.type, enabled=False):  # logarithms need all digits
            return [_normalize(log_mel(wave)[::2]) for wave in waves]

    def hidden_states_from(
        self, features: Sequence[torch.Tensor], masks: Sequence[torch.Tensor] | None = None
    ) -> HiddenStates:
        """Pads energies to the longest utterance. Raises ``UserError`` for masks."""
        if masks is not None:
            raise no_mask_embedding_error("FBank")
        state = torch.nn.utils.rnn.pad_sequence(list(features), batch_first=True)
        return HiddenStates(states=(state,), frames=torch.tensor(list(map(len, features))))

    def module(self) -> torch.nn.Module:
        """Returns an empty module: nothing to train."""
        return self._module


def _normalize(features: torch.Tensor) -> torch.Tensor:
    """Returns ``(frames, bands)`` with zero mean and unit variance over time."""
    centred = features - features.mean(dim=0)
    return centred / (centred.square().mean(dim=0) + _VARIANCE_FLOOR).sqrt()


FAMILIES.register(
    "fbank",
    EncoderFamily(
        name="fbank",
        title="FBank",
        front_end_prefixes=(),
        pretraining_only_prefixes=(),
        matches=lambda config: not config,
        describe=describe,
        build=build,
        init_weights=None,
        example_config=None,
    ),
)
