"""Renders the output of espeak-ng as 16 kHz audio with room, channel and noise.

Vocal-tract scaling, resampling, spectral tilt, reverberation and channel are products of one
spectrum in float64. So last-bit differences between processors vanish when samples are rounded to
int16. Worker processes import this module: it needs numpy only.
"""

from __future__ import annotations

import numpy as np

from speechft_ray.core.units import SAMPLE_RATE_HZ
from speechft_ray.speech.synthesis.espeak import SOURCE_RATE_HZ, Speech
from speechft_ray.speech.synthesis.speakers import UtteranceSpec

_UP = 320
"""The resampling factor is 320 / ``UtteranceSpec.down``; see ``speakers._DOWNS``."""
_ROOM_TAIL_SECONDS = 0.45
"""Zeros after the last sample, longer than any reverberation: the circular convolution never wraps
into the beginning."""
_HEADROOM = 0.98
_EDGE_SECONDS = 0.005
"""Length of the fades at both ends: espeak-ng may begin and end on a step, which would click."""


def render(speech: Speech, spec: UtteranceSpec) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """Returns the audio, int16 ``(samples,)`` at 16 kHz, and the phone onsets in its samples.

    Onsets stay exact: a source sample n lands on (lead + n) x 320 / down, and every filter of the
    speech path is zero-phase or starts with the direct sound at lag 0.
    """
    # The spectrum of the source, padded to a length that resamples to whole blocks.
    rng = np.random.default_rng(spec.seed)
    source = _voice_quality(speech.wave, spec, rng)
    source_rate_hz = SAMPLE_RATE_HZ * spec.down / _UP
    lead = round(spec.lead_seconds * source_rate_hz)
    tail = round((spec.trail_seconds + _ROOM_TAIL_SECONDS) * source_rate_hz)
    blocks = _fast_length(-(-(lead + len(source) + tail) // spec.down))
    spectrum = np.fft.rfft(np.concatenate([np.zeros(lead), source]), blocks * spec.down)[
        : blocks * _UP // 2 + 1
    ]
    # Tilt, channel and room as factors of the spectrum; the inverse transform resamples.
    samples = blocks * _UP
    hertz = np.linspace(0.0, SAMPLE_RATE_HZ / 2, samples // 2 + 1)
    channel = _channel(hertz, rng)
    speech_wave = np.fft.irfft(
        spectrum * _tilt(hertz, spec.tilt_db_per_octave) * channel * _room(spec, samples, rng),
        samples,
    )
    # At most 0.1 s more than asked for, of the 0.45 s of tail.
    length = round((lead + len(source)) * _UP / spec.down + spec.trail_seconds * SAMPLE_RATE_HZ)
    length = -(-length // spec.step_samples) * spec.step_samples
    speech_wave = speech_wave[:length]
    # Noise at the SNR, the level, and a limit below clipping.
    noise = _noise(hertz, channel, samples, rng)[:length]
    mixed = speech_wave / _rms(speech_wave) + noise / _rms(noise) * 10 ** (-spec.snr_db / 20)
    mixed *= 10 ** (spec.level_db / 20)
    mixed *= min(1.0, _HEADROOM / float(np.abs(mixed).max()))
    onsets = [(round((lead + sample) * _UP / spec.down), phone) for sample, phone in speech.onsets]
    return np.round(mixed * 32767).astype(np.int16), onsets


def _voice_quality(wave: np.ndarray, spec: UtteranceSpec, rng: np.random.Generator) -> np.ndarray:
    voice = wave.astype(np.float64)
    if spec.breath_fraction:  # aspiration: noise that follows the voice
        voice = voice + spec.breath_fraction * np.abs(voice) * rng.standard_normal(len(voice))
    if spec.tremor_fraction:
        time_seconds = np.arange(len(voice)) / SOURCE_RATE_HZ
        voice = voice * (
            1 + spec.tremor_fraction * np.sin(2 * np.pi * spec.tremor_hz * time_seconds)
        )
    edge = min(len(voice) // 2, round(_EDGE_SECONDS * SOURCE_RATE_HZ))
    voice[:edge] *= np.linspace(0, 1, edge)
    voice[len(voice) - edge :] *= np.linspace(1, 0, edge)
    return voice


def _tilt(hertz: np.ndarray, db_per_octave: float) -> np.ndarray:
    octaves = np.log2(np.maximum(hertz, 100.0) / 1000.0)
    return np.asarray(10 ** (db_per_octave * octaves / 20))


def _channel(hertz: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns the response of a microphone and line, zero-phase: a band and three ripples.

    The ripples are cosines over log frequency.
    """
    low_hz, high_hz = rng.uniform(60, 250), rng.uniform(3400, 7800)
    band = 1 / np.sqrt((1 + (low_hz / np.maximum(hertz, 1.0)) ** 4) * (1 + (hertz / high_hz) ** 8))
    octaves = np.log2(np.maximum(hertz, 60.0) / 60.0)
    ripple_db = sum(
        rng.uniform(0, 3) * np.cos(2 * np.pi * (octaves / rng.uniform(1.5, 6) + rng.uniform()))
        for _ in range(3)
    )
    return np.asarray(band * 10 ** (ripple_db / 20))


def _room(spec: UtteranceSpec, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the spectrum of a room's impulse response.

    The direct sound is at lag 0; a tail of noise follows, which decays by 60 dB in the
    reverberation time.
    """
    length = round(spec.reverberation_seconds * SAMPLE_RATE_HZ)
    decay = 10 ** (-3.0 * np.arange(length) / length)
    tail = rng.standard_normal(length) * decay
    tail[: round(0.002 * SAMPLE_RATE_HZ)] = 0.0  # the first reflection comes after 2 ms (0.7 m)
    direct_to_tail = 10 ** (rng.uniform(2, 10) / 20)
    tail /= np.sqrt((tail**2).sum()) * direct_to_tail
    tail[0] = 1.0
    return np.asarray(np.fft.rfft(tail, samples))


def _noise(
    hertz: np.ndarray, channel: np.ndarray, samples: int, rng: np.random.Generator
) -> np.ndarray:
    """Returns noise between white and brown through the same channel.

    In half of the draws its amplitude is modulated.
    """
    parts = rng.standard_normal((2, len(hertz)))
    colour = np.maximum(hertz, 50.0) ** -rng.uniform(0.0, 1.0)
    noise = np.fft.irfft((parts[0] + 1j * parts[1]) * colour * channel, samples)
    if rng.uniform() < 0.5:
        phase = (
            2 * np.pi * (rng.uniform(0.5, 4) * np.arange(samples) / SAMPLE_RATE_HZ + rng.uniform())
        )
        noise *= 1 + rng.uniform(0.2, 0.9) * np.sin(phase)
    return np.asarray(noise)


def _rms(wave: np.ndarray) -> float:
    return float(np.sqrt(np.mean(wave**2))) or 1.0


def _fast_length(blocks: int) -> int:
    while True:  # the next count without a prime factor over 7, for a fast transform
        rest = blocks
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return blocks
        blocks += 1
