"""From what espeak-ng said to finished 16 kHz audio of the synthetic world. numpy only: worker
processes import this module.

Vocal-tract scaling, resampling, spectral tilt, reverberation and channel happen in one spectrum, in
float64, so that last-bit differences between processors vanish when samples are rounded to int16.
"""

from __future__ import annotations

import numpy as np

from speechft_ray.core.units import SAMPLE_RATE_HZ
from speechft_ray.speech.synthesis.espeak import SOURCE_RATE_HZ, Speech
from speechft_ray.speech.synthesis.speakers import Take

_UP = 320
"""Resampling goes by 320 / ``Take.down``; see ``_world._DOWNS``."""
_ROOM_TAIL_SECONDS = 0.45
"""Room for the longest reverberation after the last sample, so that the circular convolution never
wraps into the beginning."""
_HEADROOM = 0.98
_EDGE_SECONDS = 0.005
"""espeak-ng may begin and end on a step; a short fade keeps it from clicking."""


def render(speech: Speech, scene: Take) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """Returns the finished audio, int16 ``(samples,)`` at 16 kHz, and the phone onsets in its
    samples.

    Onsets stay exact: a source sample n lands on (lead + n) x 320 / down, and every filter of the
    speech path is zero-phase or starts with the direct sound at lag 0.
    """
    rng = np.random.default_rng(scene.seed)
    source = _voice_quality(speech.wave, scene, rng)
    source_rate_hz = SAMPLE_RATE_HZ * scene.down / _UP
    lead = round(scene.lead_seconds * source_rate_hz)
    tail = round((scene.trail_seconds + _ROOM_TAIL_SECONDS) * source_rate_hz)
    blocks = _fast_length(-(-(lead + len(source) + tail) // scene.down))
    spectrum = np.fft.rfft(np.concatenate([np.zeros(lead), source]), blocks * scene.down)[
        : blocks * _UP // 2 + 1
    ]
    samples = blocks * _UP
    hertz = np.linspace(0.0, SAMPLE_RATE_HZ / 2, samples // 2 + 1)
    channel = _channel(hertz, rng)
    spoken = np.fft.irfft(
        spectrum * _tilt(hertz, scene.tilt_db_per_octave) * channel * _room(scene, samples, rng),
        samples,
    )
    keep = round((lead + len(source)) * _UP / scene.down + scene.trail_seconds * SAMPLE_RATE_HZ)
    keep = (
        -(-keep // scene.step_samples) * scene.step_samples
    )  # at most 0.1 s more, of the 0.45 s that there are
    spoken = spoken[:keep]
    noise = _noise(hertz, channel, samples, rng)[:keep]
    mixed = spoken / _rms(spoken) + noise / _rms(noise) * 10 ** (-scene.snr_db / 20)
    mixed *= 10 ** (scene.level_db / 20)
    mixed *= min(1.0, _HEADROOM / float(np.abs(mixed).max()))
    onsets = [(round((lead + sample) * _UP / scene.down), phone) for sample, phone in speech.onsets]
    return np.round(mixed * 32767).astype(np.int16), onsets


def _voice_quality(wave: np.ndarray, scene: Take, rng: np.random.Generator) -> np.ndarray:
    voice = wave.astype(np.float64)
    if scene.breath_fraction:  # aspiration: noise that follows the voice
        voice = voice + scene.breath_fraction * np.abs(voice) * rng.standard_normal(len(voice))
    if scene.tremor_fraction:
        time_seconds = np.arange(len(voice)) / SOURCE_RATE_HZ
        voice = voice * (
            1 + scene.tremor_fraction * np.sin(2 * np.pi * scene.tremor_hz * time_seconds)
        )
    edge = min(len(voice) // 2, round(_EDGE_SECONDS * SOURCE_RATE_HZ))
    voice[:edge] *= np.linspace(0, 1, edge)
    voice[len(voice) - edge :] *= np.linspace(1, 0, edge)
    return voice


def _tilt(hertz: np.ndarray, db_per_octave: float) -> np.ndarray:
    octaves = np.log2(np.maximum(hertz, 100.0) / 1000.0)
    return np.asarray(10 ** (db_per_octave * octaves / 20))


def _channel(hertz: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A microphone and line: band edges and three gentle ripples over log frequency, zero-phase."""
    low_hz, high_hz = rng.uniform(60, 250), rng.uniform(3400, 7800)
    band = 1 / np.sqrt((1 + (low_hz / np.maximum(hertz, 1.0)) ** 4) * (1 + (hertz / high_hz) ** 8))
    octaves = np.log2(np.maximum(hertz, 60.0) / 60.0)
    ripple_db = sum(
        rng.uniform(0, 3) * np.cos(2 * np.pi * (octaves / rng.uniform(1.5, 6) + rng.uniform()))
        for _ in range(3)
    )
    return np.asarray(band * 10 ** (ripple_db / 20))


def _room(scene: Take, samples: int, rng: np.random.Generator) -> np.ndarray:
    """The spectrum of a room: the direct sound at lag 0, then a tail of noise that falls by 60 dB
    in the reverberation time."""
    length = round(scene.reverberation_seconds * SAMPLE_RATE_HZ)
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
    """Noise between white and brown, through the same channel, half of the time swelling and
    fading."""
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
