"""Length of recordings whose header does not tell it, and files that are cut, joined or damaged."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechft_ray.core.errors import UserError
from speechft_ray.speech.audio import AudioInfo, read_audio, read_audio_info
from tests.speech import ffmpeg

RATE = 16_000
SOUND = (
    0.3 * np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE) * np.hanning(2 * RATE)
    + 0.03 * np.random.default_rng(0).standard_normal(2 * RATE)
)[:, None]
CONSTANT, VARIABLE = ["-b:a", "32k"], ["-q:a", "4"]
MPEG_FRAME = 576
"""Samples of a frame of mp3 at 16 kHz."""


def make_tagged_mp3(**options: str) -> bytes:
    """Returns an mp3 with its length in an Info or Xing tag."""
    return make("MP3", **options)


def make(format_: str, subtype: str | None = None, **options: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, SOUND, RATE, format=format_, subtype=subtype, **options)
    return file.getvalue()


def read(path: Path, content: bytes) -> np.ndarray:
    """Writes a file, and returns its samples after a check that its length is that of them."""
    path.write_bytes(content)
    wave = read_audio(path)
    assert read_audio_info(path).samples == len(wave)
    return wave


def check_refused(path: Path, content: bytes, words: str) -> None:
    path.write_bytes(content)
    for function in (read_audio_info, read_audio):
        with pytest.raises(UserError, match=words) as error:
            function(path)
        assert str(path) in str(error.value)


def pipe_mp3(options: list[str]) -> bytes:
    return ffmpeg.encode_into_pipe(SOUND, RATE, "mp3", options)


@pytest.mark.parametrize("options", [CONSTANT, VARIABLE, [*VARIABLE, "-id3v2_version", "0"]])
@pytest.mark.parametrize("ending", ["mp3", "wav"])
def test_an_mp3_without_a_tag_is_read_whole(
    tmp_path: Path, options: list[str], ending: str
) -> None:
    wave = read(tmp_path / f"a.{ending}", pipe_mp3(options))
    expected = ffmpeg.decode(tmp_path / f"a.{ending}", 1)[:, 0]
    assert len(wave) == len(expected) == 58 * MPEG_FRAME
    np.testing.assert_allclose(wave, expected, rtol=0, atol=1e-5)


def test_a_part_of_an_mp3_without_a_tag_is_that_range(tmp_path: Path) -> None:
    whole = read(tmp_path / "a.mp3", pipe_mp3(VARIABLE))
    for start, stop in ((0, 100), (20_000, 25_000), (33_000, 40_000), (40_000, 41_000)):
        part = read_audio(tmp_path / "a.mp3", part=(start, stop))
        np.testing.assert_array_equal(part, whole[start:stop])


def test_an_mp3_in_a_wav_file_is_read_whole(tmp_path: Path) -> None:
    options = ["-c:a", "libmp3lame", *VARIABLE]
    ffmpeg.encode(SOUND, RATE, tmp_path / "a.wav", options)
    assert len(read(tmp_path / "a.wav", (tmp_path / "a.wav").read_bytes())) == 58 * MPEG_FRAME
    piped = ffmpeg.encode_into_pipe(SOUND, RATE, "wav", options)
    assert len(read(tmp_path / "piped.wav", piped)) == 58 * MPEG_FRAME


def test_a_tagged_mp3_is_decoded_as_before(tmp_path: Path) -> None:
    for options in ({}, {"bitrate_mode": "VARIABLE"}):
        content = make_tagged_mp3(**options)
        wave = read(tmp_path / "a.mp3", content)
        with soundfile.SoundFile(tmp_path / "a.mp3") as file:
            expected = file.read(2 * RATE)
        np.testing.assert_array_equal(wave, expected.astype(np.float32))
        assert read_audio_info(tmp_path / "a.mp3") == AudioInfo(
            samples=2 * RATE, rate_hz=RATE, channels=1
        )


def test_tags_and_zeros_around_the_frames_of_an_mp3_are_no_audio(tmp_path: Path) -> None:
    id3v1 = b"TAG" + b"title".ljust(125, b"\0")
    ape = b"APETAGEX" + bytes([208, 7, 0, 0, 40, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 128]) + bytes(8)
    content = pipe_mp3(VARIABLE)
    for behind in (id3v1, bytes(500), ape + bytes(40) + id3v1, b"LYRICSBEGINabcLYRICSEND" + id3v1):
        assert len(read(tmp_path / "a.mp3", content + behind)) == 58 * MPEG_FRAME
        both = content + behind + content
        assert len(read(tmp_path / "a.mp3", both)) == 2 * 58 * MPEG_FRAME


def test_a_vbri_tag_is_no_audio(tmp_path: Path) -> None:
    frames = pipe_mp3([*VARIABLE, "-id3v2_version", "0"])
    head = frames[:4]
    size = 72 * 64_000 // RATE  # of a frame with bit rate index 8, 64 kbit/s
    tag = bytearray(size)
    tag[:4] = head[:2] + bytes([8 << 4 | head[2] & 0x0C]) + head[3:4]
    tag[36:54] = b"VBRI" + bytes(10) + (58).to_bytes(4, "big")
    wave = read(tmp_path / "a.mp3", bytes(tag) + frames)
    np.testing.assert_array_equal(wave, read(tmp_path / "b.mp3", frames))


JOINED: dict[str, Callable[[], bytes]] = {
    "mp3 with a tag": make_tagged_mp3,
    "mp3": lambda: pipe_mp3(VARIABLE),
    "vorbis": lambda: make("OGG"),
    "opus": lambda: make("OGG", "OPUS"),
    "flac": lambda: make("FLAC"),
    "flac from a pipe": lambda: ffmpeg.encode_into_pipe(SOUND, RATE, "flac"),
}


@pytest.mark.parametrize("name", JOINED)
def test_files_joined_to_one_are_read_one_after_the_other(tmp_path: Path, name: str) -> None:
    content = JOINED[name]()
    single = read(tmp_path / "single", content)
    wave = read(tmp_path / "joined", content + content + content)
    if name == "mp3":  # one stream of frames: the decoder does not begin anew
        assert len(wave) == 3 * len(single)
    else:
        np.testing.assert_array_equal(wave, np.tile(single, 3))
    info = read_audio_info(tmp_path / "joined")
    assert info.is_longer and info.peak == pytest.approx(np.abs(wave).max(), abs=1e-4)


def test_joined_recordings_of_different_kinds_are_refused(tmp_path: Path) -> None:
    other = io.BytesIO()
    soundfile.write(other, SOUND, 22_050, format="MP3")
    words = "joins recordings of different rates or channels"
    check_refused(tmp_path / "a.mp3", make_tagged_mp3() + other.getvalue(), words)
    other = io.BytesIO()
    soundfile.write(other, np.hstack([SOUND, SOUND]), RATE, format="FLAC")
    check_refused(tmp_path / "a.flac", make("FLAC") + other.getvalue(), words)


def test_a_flac_of_unknown_length_is_read_whole(tmp_path: Path) -> None:
    for frames in (2 * RATE, RATE + 1, 300):  # the last block has a size of its own
        content = ffmpeg.encode_into_pipe(SOUND[:frames], RATE, "flac")
        assert soundfile.info(io.BytesIO(content)).frames > 2**40
        wave = read(tmp_path / "a.flac", content)
        np.testing.assert_array_equal(wave, ffmpeg.decode(tmp_path / "a.flac", 1)[:, 0])
        assert len(wave) == frames
    words = "cannot be decoded|of the [0-9]+ samples|no audio behind its header"
    content = ffmpeg.encode_into_pipe(SOUND, RATE, "flac")
    for size in (len(content) - 1, len(content) - 100, len(content) // 2):
        check_refused(tmp_path / "a.flac", content[:size], words)


CUT: dict[str, Callable[[], bytes]] = {
    "a.wav": lambda: make("WAV"),
    "a.aiff": lambda: make("AIFF"),
    "a.au": lambda: make("AU"),
    "a.caf": lambda: make("CAF"),
    "a.w64": lambda: make("W64"),
    "a.rf64": lambda: make("RF64"),
    "a.flac": lambda: make("FLAC"),
    "a.ogg": lambda: make("OGG"),
    "a.opus": lambda: make("OGG", "OPUS"),
    "tagged.mp3": make_tagged_mp3,
    "a.mp3": lambda: pipe_mp3(VARIABLE),
}


@pytest.mark.parametrize("name", CUT)
def test_a_cut_file_is_refused(tmp_path: Path, name: str) -> None:
    content = CUT[name]()
    read(tmp_path / name, content)
    words = (
        "of audio that its header|its end is missing|ends too early|cannot be decoded|"
        "not a readable audio file"
    )
    for size in (len(content) - 1, len(content) - 1000, len(content) // 2 + 1):
        check_refused(tmp_path / name, content[:size], words)


def list_pages(content: bytes) -> list[int]:
    """Returns where the pages of an Ogg file begin, and its length."""
    starts, place = [], 0
    while (place := content.find(b"OggS", place)) >= 0:
        starts.append(place)
        place += 1
    return [*starts, len(content)]


@pytest.mark.parametrize("codec", ["libvorbis", "libopus"])
def test_pages_that_are_missing_or_damaged_are_found(tmp_path: Path, codec: str) -> None:
    options = ["-c:a", codec, "-page_duration", "200000"]
    content = ffmpeg.encode_into_pipe(SOUND, RATE, "ogg", options)
    pages = list_pages(content)
    assert len(pages) > 6 and len(read(tmp_path / "whole.ogg", content)) == 2 * RATE
    check_refused(tmp_path / "a.ogg", content[: pages[-2]], "ends without its last page")
    missing = content[: pages[-4]] + content[pages[-3] :]
    check_refused(tmp_path / "a.ogg", missing, "lacks the pages")
    place = pages[-3] - 20
    changed = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    check_refused(tmp_path / "a.ogg", changed, "is damaged between the bytes")


def test_damage_between_the_frames_of_an_mp3_is_found(tmp_path: Path) -> None:
    content = pipe_mp3([*CONSTANT, "-id3v2_version", "0"])
    half = len(content) // 2 // 144 * 144  # bytes of a frame at 32 kbit/s
    check_refused(
        tmp_path / "a.mp3", content[:half] + b"\1" * 50 + content[half:], "bytes .* are no audio"
    )
    tagged = make_tagged_mp3()
    words = "frames that its header counts|ends within a frame|no audio"
    check_refused(tmp_path / "a.mp3", tagged + tagged[: len(tagged) // 2], words)


def with_data_size(content: bytes, size: int) -> bytes:
    place = content.index(b"data") + 4
    return content[:place] + size.to_bytes(4, "little") + content[place + 4 :]


def test_a_wav_whose_writer_could_not_correct_the_header_is_read_whole(tmp_path: Path) -> None:
    content = make("WAV")
    expected = read(tmp_path / "a.wav", content)
    for size in (0, 0xFFFF_FFFF, 0x7FFF_FFFF):
        piped = with_data_size(content, size)
        np.testing.assert_array_equal(read(tmp_path / "a.wav", piped), expected)
    # What is behind an empty data chunk may be another chunk, and then there are no samples.
    empty = with_data_size(content, 0)[: content.index(b"data") + 8] + b"LIST\4\0\0\0INFO"
    check_refused(tmp_path / "a.wav", empty, "holds no samples")


def test_a_wav_with_more_audio_than_its_header_names_is_refused(tmp_path: Path) -> None:
    content = make("WAV")
    check_refused(
        tmp_path / "a.wav", with_data_size(content, 1000), "63000 bytes behind the 1000 bytes"
    )
    check_refused(tmp_path / "a.wav", content + content, "64044 bytes behind the 64000 bytes")
    expected = read(tmp_path / "a.wav", content)
    for behind in (b"LIST\4\0\0\0INFO", b"LIST\3\0\0\0INF", b"TAG".ljust(128, b"x"), bytes(3000)):
        np.testing.assert_array_equal(read(tmp_path / "b.wav", content + behind), expected)


def test_a_wav_with_a_codec_that_is_not_read_says_so(tmp_path: Path) -> None:
    ffmpeg.encode(SOUND, RATE, tmp_path / "a.wav", ["-c:a", "wmav2"])
    check_refused(tmp_path / "a.wav", (tmp_path / "a.wav").read_bytes(), "codec 0x0161")


def test_a_git_lfs_pointer_is_named(tmp_path: Path) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 72862\n"
    for name in ("a.wav", "a.flac", "a.mp3", "a.raw", "a"):
        check_refused(tmp_path / name, pointer.encode(), "Git LFS pointer.*git lfs pull")
