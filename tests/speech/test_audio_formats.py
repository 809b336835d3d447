"""Every format, rate, width and number of channels decodes to what ffmpeg decodes."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from math import gcd
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import resample_poly

from speechft_ray.speech.audio import read_audio, read_audio_info
from tests.speech import ffmpeg

MPEG_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
RATES = (8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000)


class Format(NamedTuple):
    """A way to write a file: its ending, ffmpeg's options, and how far samples may differ."""

    ending: str
    options: Sequence[str]
    tolerance: float = 2e-7
    rates: Sequence[int] = RATES
    is_piped: bool = False


def pcm(ending: str, *codecs: str) -> list[Format]:
    return [Format(ending, ["-c:a", codec]) for codec in codecs]


MP3 = 1e-4
"""mpg123 and ffmpeg synthesise in float32."""
FORMATS = [
    *pcm("wav", "pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le"),
    *pcm("wav", "pcm_alaw", "pcm_mulaw"),
    Format("wav", ["-c:a", "adpcm_ima_wav"], 1e-4),
    Format("wav", ["-c:a", "adpcm_ms"], 1e-4),
    Format("wav", ["-rf64", "always"]),
    Format("wav", [], is_piped=True),
    *pcm("aiff", "pcm_s8", "pcm_s16be", "pcm_s24be", "pcm_s32be", "pcm_f32be"),
    *pcm("au", "pcm_s16be", "pcm_mulaw"),
    *pcm("caf", "pcm_s16le", "pcm_s24be", "pcm_f32le"),
    *pcm("w64", "pcm_s16le", "pcm_s32le"),
    Format("flac", ["-sample_fmt", "s16"]),
    Format("flac", ["-sample_fmt", "s32"]),
    Format("flac", ["-sample_fmt", "s16"], is_piped=True),
    Format("ogg", ["-c:a", "libvorbis"], 1e-4),
    Format("ogg", ["-c:a", "libvorbis"], 1e-4, is_piped=True),
    Format("mp3", ["-b:a", "64k"], MP3, MPEG_RATES),
    Format("mp3", ["-q:a", "4"], MP3, MPEG_RATES),
    Format("mp3", ["-b:a", "32k"], MP3, MPEG_RATES, is_piped=True),
    Format("mp3", ["-q:a", "4"], MP3, MPEG_RATES, is_piped=True),
    Format("mp3", ["-q:a", "7", "-id3v2_version", "0", "-write_id3v1", "1"], MP3, MPEG_RATES, True),
    Format("wav", ["-c:a", "libmp3lame", "-q:a", "5"], MP3, MPEG_RATES),
    Format("mp2", [], MP3, (16_000, 22_050, 24_000, 32_000, 44_100, 48_000)),
]


def make_sound(rate_hz: int, channels: int, frames: int, seed: int) -> np.ndarray:
    """Returns a tone with noise: all channels in phase, none equal to another."""
    rng = np.random.default_rng(seed)
    tone = 0.3 * np.sin(2 * np.pi * rng.uniform(100, 900) * np.arange(frames) / rate_hz)
    swell = np.linspace(0.2, 1.0, frames)
    return (tone * swell)[:, None] + 0.02 * rng.standard_normal((frames, channels))


def resample(samples: np.ndarray, rate_hz: int) -> np.ndarray:
    common = gcd(16_000, rate_hz)
    mono: np.ndarray = samples.mean(axis=1)
    if rate_hz == 16_000:
        return mono
    return np.asarray(resample_poly(mono, 16_000 // common, rate_hz // common))


@st.composite
def recordings(draw: st.DrawFn) -> tuple[Format, int, int, int, int]:
    form = draw(st.sampled_from(FORMATS))
    rate_hz, channels = draw(st.sampled_from(form.rates)), draw(st.sampled_from([1, 2]))
    frames = draw(st.integers(rate_hz // 5, rate_hz))
    return form, rate_hz, channels, frames, draw(st.integers(0, 2**16))


def check_as_ffmpeg(recording: tuple[Format, int, int, int, int]) -> None:
    form, rate_hz, channels, frames, seed = recording
    sound = make_sound(rate_hz, channels, frames, seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a.{form.ending}"
        if form.is_piped:
            path.write_bytes(ffmpeg.encode_into_pipe(sound, rate_hz, form.ending, form.options))
        else:
            ffmpeg.encode(sound, rate_hz, path, form.options)
        expected = ffmpeg.decode(path, channels)
        info, wave = read_audio_info(path), read_audio(path)
    if form.ending == "ogg":  # of a short stream ffmpeg keeps the padding of the last block
        expected = expected[:frames]
    assert (info.rate_hz, info.channels) == (rate_hz, channels)
    assert -(-len(expected) * 16_000 // rate_hz) == info.samples == len(wave)
    np.testing.assert_allclose(wave, resample(expected, rate_hz), rtol=0, atol=form.tolerance)


@pytest.mark.parametrize("index", range(len(FORMATS)))
def test_every_format_decodes_as_ffmpeg_decodes_it(index: int) -> None:
    form = FORMATS[index]
    rate_hz = form.rates[index % len(form.rates)]
    check_as_ffmpeg((form, rate_hz, 1 + index % 2, rate_hz // 2 + index, index))


@settings(derandomize=True, deadline=None, max_examples=40, database=None)
@given(recordings())
def test_recordings_decode_as_ffmpeg_decodes_them(
    recording: tuple[Format, int, int, int, int],
) -> None:
    check_as_ffmpeg(recording)


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 24_000, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_opus_is_as_long_as_ffmpeg_says_and_sounds_alike(
    tmp_path: Path, rate_hz: int, channels: int
) -> None:
    """ffmpeg always decodes Opus at 48 kHz, libsndfile at the rate of its source."""
    path = tmp_path / "a.opus"
    ffmpeg.encode(make_sound(rate_hz, channels, rate_hz, 1), rate_hz, path, ["-b:a", "64k"])
    expected, wave = ffmpeg.decode(path, channels), read_audio(path)
    assert len(wave) == read_audio_info(path).samples == len(expected) // 3 == 16_000
    assert np.corrcoef(wave, resample(expected, 48_000))[0, 1] > 0.99
