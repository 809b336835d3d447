"""Reading audio: against analytic signals, and every error with its path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechft_ray.core.errors import UserError
from speechft_ray.speech import _decoding
from speechft_ray.speech.audio import AudioInfo, read_audio, read_audio_info, resolve_inside
from tests.speech.layouts import timit


def sine(hertz: float, rate_hz: int, samples: int) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(samples) / rate_hz)


def test_sixteen_khz_comes_back_bit_by_bit(tmp_path: Path) -> None:
    codes = np.array([0, 1, -1, 32767, -32768, 12345], dtype=np.int16)
    soundfile.write(tmp_path / "a.wav", codes, 16_000)
    wave = read_audio(tmp_path / "a.wav")
    assert wave.dtype == np.float32 and wave.shape == (6,)
    np.testing.assert_array_equal(wave, codes / np.float32(32768))


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_resampling_keeps_a_sine(tmp_path: Path, rate_hz: int) -> None:
    soundfile.write(tmp_path / "a.wav", sine(440, rate_hz, rate_hz), rate_hz, subtype="FLOAT")
    wave = read_audio(tmp_path / "a.wav")
    assert len(wave) == 16_000
    np.testing.assert_allclose(wave[800:-800], sine(440, 16_000, 16_000)[800:-800], atol=2e-3)


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 22_050, 44_100])
@pytest.mark.parametrize("samples", [1, 399, 1000, 1001])
def test_the_length_from_the_header_is_that_of_the_samples(
    tmp_path: Path, rate_hz: int, samples: int
) -> None:
    soundfile.write(tmp_path / "a.flac", sine(100, rate_hz, samples), rate_hz)
    assert read_audio_info(tmp_path / "a.flac").samples == len(read_audio(tmp_path / "a.flac"))


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 44_100])
def test_a_part_is_that_range_of_the_whole(tmp_path: Path, rate_hz: int) -> None:
    soundfile.write(tmp_path / "a.flac", sine(440, rate_hz, rate_hz), rate_hz)
    whole = read_audio(tmp_path / "a.flac")
    for start, stop in (
        (0, 100),
        (5_000, 9_000),
        (15_990, 20_000),
        (16_000, 20_000),
        (17_000, 20_000),
    ):
        np.testing.assert_array_equal(
            read_audio(tmp_path / "a.flac", part=(start, stop)), whole[start:stop]
        )


def test_channels_are_averaged(tmp_path: Path) -> None:
    soundfile.write(
        tmp_path / "a.wav", np.array([[0.5, 0.0], [-0.25, -0.75]]), 16_000, subtype="FLOAT"
    )
    np.testing.assert_array_equal(
        read_audio(tmp_path / "a.wav"), np.array([0.25, -0.5], dtype=np.float32)
    )


def check_raises(path: Path, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        read_audio(path)
    assert str(path) in str(error.value)


def test_errors_name_the_path(tmp_path: Path) -> None:
    check_raises(tmp_path / "absent.wav", "does not exist")
    check_raises(tmp_path, "not a file")
    for name, content in {"text.wav": b"hello", "zero.flac": b"", "bare.raw": bytes(64)}.items():
        (tmp_path / name).write_bytes(content)
        check_raises(tmp_path / name, "not a readable audio file")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16_000)
    check_raises(tmp_path / "empty.wav", "holds no samples")
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan]), 16_000, subtype="FLOAT")
    check_raises(tmp_path / "nan.wav", "not finite")
    soundfile.write(tmp_path / "slow.wav", np.zeros(10), 1_000)
    check_raises(tmp_path / "slow.wav", "1000 Hz: allowed are 4000 to 384000")
    soundfile.write(tmp_path / "many.wav", np.zeros((10, 33)), 16_000)
    check_raises(tmp_path / "many.wav", "33 channels")


def test_a_truncated_flac_raises(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 40_000)
    soundfile.write(tmp_path / "a.flac", noise, 16_000)
    content = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(content[: len(content) // 2])
    check_raises(tmp_path / "a.flac", "cannot be decoded|of the 40000 samples")


def test_audio_info_raises_for_damage_that_the_header_hides(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (8_000, 2))
    for name in ("a.flac", "a.wav", "a.ogg"):
        soundfile.write(tmp_path / name, noise, 8_000)
        info = read_audio_info(tmp_path / name)
        assert (info.samples, info.rate_hz, info.channels) == (16_000, 8_000, 2)
    for name in ("a.flac", "a.wav", "a.ogg"):
        content = (tmp_path / name).read_bytes()
        for size in (len(content) - 100, len(content) // 2, 60):
            (tmp_path / name).write_bytes(content[:size])
            with pytest.raises(UserError, match=r"Copy|Allowed"):
                read_audio_info(tmp_path / name)
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan, 0.0]), 16_000, subtype="FLOAT")
    with pytest.raises(UserError, match="not finite"):
        read_audio_info(tmp_path / "nan.wav")


def test_a_truncated_wav_raises(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.full(1_000, 0.1), 16_000)
    content = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "a.wav").write_bytes(content[:-500])
    check_raises(tmp_path / "a.wav", "holds 1500 of the 2000 bytes of audio")
    # As ffmpeg writes into a pipe.
    piped = content.replace((2_000).to_bytes(4, "little"), b"\xff\xff\xff\xff")
    (tmp_path / "a.wav").write_bytes(piped)
    assert len(read_audio(tmp_path / "a.wav")) == 1_000


def test_a_truncated_sphere_file_raises(tmp_path: Path) -> None:
    wave = np.linspace(-0.5, 0.5, 1_000)
    path = timit.write_sphere(tmp_path / "SX1.WAV", wave)
    assert read_audio_info(path) == AudioInfo(samples=1_000, rate_hz=16_000, channels=1)
    np.testing.assert_allclose(read_audio(path), wave, atol=1e-4)
    content = path.read_bytes()
    path.write_bytes(content[:-500])
    check_raises(path, "holds 750 of the 1000 samples that its header names")
    # Without a count in the header, the length cannot be compared.
    path.write_bytes(content.replace(b"sample_count -i 1000", b"sample_space -i 1000"))
    assert len(read_audio(path)) == 1_000


def test_a_file_too_long_raises_from_its_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(16_001), 16_000)
    monkeypatch.setattr(_decoding, "MAX_SECONDS", 1)
    check_raises(tmp_path / "a.wav", "at most 1 s")
    with pytest.raises(UserError, match="at most 1 s"):
        read_audio_info(tmp_path / "a.wav")


def test_paths_stay_inside_their_root(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "sub").mkdir(parents=True)
    outside.mkdir()
    (root / "link").symlink_to(outside)
    (root / "inner").symlink_to(root / "sub")
    assert resolve_inside(root, "sub/a.wav") == root / "sub" / "a.wav"
    assert resolve_inside(root, "sub/../a.wav") == root / "a.wav"
    assert resolve_inside(root, "inner/a.wav") == root / "sub" / "a.wav"
    for bad in (
        "../outside/a.wav",
        "link/a.wav",
        str(outside / "a.wav"),
        str(root / "a.wav"),
        "sub/../../a.wav",
    ):
        with pytest.raises(UserError, match="stay inside"):
            resolve_inside(root, bad)
    with pytest.raises(UserError, match="not a usable path"):
        resolve_inside(root, "a\0b")


def test_a_sibling_with_the_same_beginning_is_outside(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "rooted").mkdir()
    with pytest.raises(UserError, match="stay inside"):
        resolve_inside(tmp_path / "root", "../rooted/a.wav")


def test_reading_below_a_root(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    soundfile.write(tmp_path / "root" / "a.wav", np.zeros(5), 16_000)
    soundfile.write(tmp_path / "secret.wav", np.zeros(5), 16_000)
    assert len(read_audio("a.wav", tmp_path / "root")) == 5
    with pytest.raises(UserError, match="stay inside"):
        read_audio("../secret.wav", tmp_path / "root")
