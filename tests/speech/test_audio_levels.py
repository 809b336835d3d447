"""Recordings that reading would destroy: over full scale, mixed to silence, scaled to nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechft_ray.core.errors import UserError
from speechft_ray.core.fingerprint import file_sha256
from speechft_ray.speech.audio import read_audio, read_audio_info
from speechft_ray.speech.corpora.base import CORPORA, Corpus
from tests.speech import ffmpeg

RATE = 16_000
RNG = np.random.default_rng(0)
SPEECH = RNG.laplace(size=3 * RATE) * np.abs(np.sin(np.arange(3 * RATE) / 2500))
SPEECH *= 0.5 / np.abs(SPEECH).max()
"""As peaky as speech; the peak is half of full scale."""


def check_refused(path: Path, words: str) -> None:
    for function in (read_audio_info, read_audio):
        with pytest.raises(UserError, match=words) as error:
            function(path)
        assert str(path) in str(error.value)


def write(path: Path, samples: np.ndarray, subtype: str = "FLOAT") -> Path:
    soundfile.write(path, samples, RATE, subtype=subtype)
    return path


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_floats_in_the_range_of_integers_are_refused(tmp_path: Path, subtype: str) -> None:
    for scale in (2**7, 2**15, 2**31):
        path = write(tmp_path / "a.wav", SPEECH * scale, subtype)
        check_refused(path, "clipping would remove .* of its energy")
    check_refused(write(tmp_path / "a.wav", SPEECH * 2**15), "divide by 32768")


@pytest.mark.parametrize("ending", ["wav", "aiff", "caf", "au", "w64"])
def test_floats_over_full_scale_are_refused_in_every_container(tmp_path: Path, ending: str) -> None:
    tone = 4 * np.sin(np.arange(RATE) / 10)
    check_refused(write(tmp_path / f"a.{ending}", tone), "reaches 4 where 1 is full scale")


def test_a_lossy_file_over_full_scale_is_refused_when_it_is_read(tmp_path: Path) -> None:
    tone = 4 * np.sin(np.arange(RATE) / 10)[:, None]
    ffmpeg.encode(tone, RATE, tmp_path / "a.ogg", ["-c:a", "libvorbis", "-q:a", "6"])
    with pytest.raises(UserError, match="full scale"):
        read_audio(tmp_path / "a.ogg")


def test_a_little_over_full_scale_is_clipped(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", SPEECH * 2.4)  # the peak is 1.2
    wave = read_audio(path)
    np.testing.assert_array_equal(wave, np.clip((SPEECH * 2.4).astype(np.float32), -1, 1))
    assert read_audio_info(path).peak == pytest.approx(1.2, abs=1e-6)


@pytest.mark.parametrize("gain", [-1.0, -0.98, -0.9, -0.75])
@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_channels_that_cancel_each_other_are_refused(
    tmp_path: Path, gain: float, subtype: str
) -> None:
    path = write(tmp_path / "a.wav", np.stack([SPEECH, gain * SPEECH], axis=1), subtype)
    check_refused(path, "channels of opposite sign")


def test_channels_that_cancel_with_a_noise_that_stays_or_for_a_while_are_refused(
    tmp_path: Path,
) -> None:
    hiss = 0.003 * RNG.standard_normal((len(SPEECH), 2))
    both = np.stack([SPEECH, -SPEECH], axis=1)
    check_refused(write(tmp_path / "a.wav", both + hiss), "channels of opposite sign")
    sign = np.where(np.arange(len(SPEECH)) < RATE, -1, 1)  # the first of three seconds
    check_refused(
        write(tmp_path / "a.wav", np.stack([SPEECH, sign * SPEECH], axis=1)),
        "channels of opposite sign",
    )
    four = np.stack([SPEECH, -SPEECH, SPEECH, -SPEECH], axis=1)
    check_refused(write(tmp_path / "a.wav", four), "channels of opposite sign")
    ffmpeg.encode(both, RATE, tmp_path / "a.mp3", ["-b:a", "128k", "-joint_stereo", "0"])
    check_refused(tmp_path / "a.mp3", "channels of opposite sign")


def test_other_channels_are_averaged(tmp_path: Path) -> None:
    other = 0.1 * RNG.standard_normal(len(SPEECH))
    for channels in (
        (SPEECH, SPEECH),
        (SPEECH, 0 * SPEECH),  # a channel without a microphone
        (SPEECH, other),
        (SPEECH, np.roll(SPEECH, 40)),  # microphones at a distance
        (SPEECH, -0.5 * SPEECH + other),
        (0 * SPEECH, 0 * SPEECH),
    ):
        path = write(tmp_path / "a.wav", np.stack(channels, axis=1))
        expected = np.mean([channel.astype(np.float32) for channel in channels], axis=0)
        np.testing.assert_allclose(read_audio(path), expected, atol=1e-7)
        assert read_audio_info(path).peak == pytest.approx(np.abs(expected).max(), abs=1e-7)


@pytest.mark.parametrize("ending", ["wav", "aiff", "flac"])
def test_a_few_bits_in_a_wide_format_are_refused(tmp_path: Path, ending: str) -> None:
    subtype = "PCM_24" if ending == "flac" else "PCM_32"
    step = 2**-23 if ending == "flac" else 2**-31
    values = np.round(SPEECH * (200 if ending == "flac" else 2**15)) * step
    path = write(tmp_path / f"a.{ending}", values, subtype)
    check_refused(path, "less than one step of 16 bits")


def test_a_float_file_that_was_scaled_twice_is_refused_and_silence_is_not(tmp_path: Path) -> None:
    check_refused(write(tmp_path / "a.wav", SPEECH / 2**15), "less than one step of 16 bits")
    for subtype in ("PCM_16", "PCM_32", "FLOAT"):
        silence = write(tmp_path / "silence.wav", np.zeros(RATE), subtype)
        assert not read_audio(silence).any() and read_audio_info(silence).samples == RATE
    faint = write(tmp_path / "faint.wav", np.resize([0, 1, 0, -1], RATE) / 2**15, "PCM_16")
    assert len(read_audio(faint)) == RATE


def test_a_part_of_a_recording_may_be_anything(tmp_path: Path) -> None:
    """Whole files are checked when a corpus is opened; a pause between two words is no fault."""
    hum = 0.001 * SPEECH[RATE:]
    both = np.stack([np.append(SPEECH[:RATE], hum), np.append(SPEECH[:RATE], -hum)], axis=1)
    path = write(tmp_path / "a.wav", both)
    assert len(read_audio(path)) == len(SPEECH)
    assert np.abs(read_audio(path, part=(RATE, 2 * RATE))).max() == 0


def open_manifest(folder: Path, names: list[str], **options: str) -> Corpus:
    rows = [f"{name}\t{split}" for name, split in zip(names, ("train", "dev", "test"), strict=True)]
    (folder / "manifest.tsv").write_text("\n".join(["path\tsplit", *rows]), encoding="utf-8")
    kind = CORPORA.get("manifest")
    corpus: Corpus = kind.open(kind.options(**options), folder, folder / "cache")
    return corpus


def test_a_corpus_says_what_is_clipped_quiet_or_without_a_length(tmp_path: Path) -> None:
    write(tmp_path / "loud.wav", SPEECH * 2.4)
    write(tmp_path / "quiet.wav", np.round(SPEECH * 2**15) / 2**23, "PCM_24")
    piped = ffmpeg.encode_into_pipe(SPEECH[:, None], RATE, "mp3", ["-q:a", "4"])
    (tmp_path / "piped.mp3").write_bytes(piped)
    for _ in range(2):  # the second time from the cache
        corpus = open_manifest(tmp_path, ["loud.wav", "quiet.wav", "piped.mp3"])
        notes = "\n".join(corpus.notes)
        assert "1 of 3 files exceed full scale and are clipped there: loud.wav." in notes
        assert "1 of 3 files never reach 1/256 of full scale: quiet.wav." in notes
        assert "have no length in their header" in notes and "content: piped.mp3." in notes
        for utterance in corpus.utterances:
            assert len(corpus.read(utterance)) == utterance.samples


def test_a_corpus_leaves_destroyed_recordings_out_if_it_may(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", SPEECH, "PCM_16")
    write(tmp_path / "b.wav", SPEECH * 2**15)
    write(tmp_path / "c.wav", np.stack([SPEECH, -SPEECH], axis=1))
    with pytest.raises(UserError, match=r"(?s)divide by 32768.*channels of opposite sign"):
        open_manifest(tmp_path, ["a.wav", "b.wav", "c.wav"])
    corpus = open_manifest(tmp_path, ["a.wav", "b.wav", "c.wav"], on_bad_audio="skip")
    assert [utterance.key for utterance in corpus.utterances] == ["a.wav"]


def test_bytes_that_were_read_in_part_before_have_another_identity(tmp_path: Path) -> None:
    """Stored results of the same bytes were computed of a part of the recording."""
    write(tmp_path / "a.wav", SPEECH, "PCM_16")
    write(tmp_path / "b.flac", SPEECH, "PCM_16")
    flac = (tmp_path / "b.flac").read_bytes()
    (tmp_path / "b.flac").write_bytes(flac + flac)
    soundfile.write(tmp_path / "c.mp3", SPEECH, RATE)
    corpus = open_manifest(tmp_path, ["a.wav", "b.flac", "c.mp3"])
    unchanged = {
        name: corpus.audio_ids[name] == file_sha256(tmp_path / name) for name in corpus.audio_ids
    }
    assert unchanged == {"a.wav": True, "b.flac": False, "c.mp3": True}
