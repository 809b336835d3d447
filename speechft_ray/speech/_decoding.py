"""Opens and decodes recordings with libsndfile, also those whose length it cannot tell.

Where the header of a file does not tell how long it is, or tells it of the first of several
recordings, the file is taken apart and every part is decoded from its beginning to its end.
"""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from speechft_ray.core.errors import UserError
from speechft_ray.core.files import describe_lfs_pointer
from speechft_ray.speech import _ogg
from speechft_ray.speech._containers import (
    describe_unread_wav,
    describe_wrong_size,
    find_samples,
    name_data_size,
)
from speechft_ray.speech._damage import DamagedStream
from speechft_ray.speech._flac import split_flac
from speechft_ray.speech._mpeg import split_mpeg

MAX_SECONDS = 3600
"""A longer file is taken for a mistake (an uncut session, a forged header). The longest files of
SUPERB's corpora are a few minutes."""
MIN_RATE_HZ, MAX_RATE_HZ = 4_000, 384_000
MAX_CHANNELS = 32

_BLOCK_FRAMES = 1 << 16


class Part(NamedTuple):
    """One of the recordings in a file. ``is_mpeg``: its length is found by decoding alone."""

    content: bytes
    is_mpeg: bool


def open_audio(path: Path) -> soundfile.SoundFile:
    """Opens a file with libsndfile, without decoding anything. Raises ``UserError`` for a file that
    is missing, no audio, or outside the allowed rates and channels."""
    if not path.is_file():
        raise UserError(f"{path} does not exist or is not a file.")
    try:
        file = _open_beside_fork(path)
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        # TypeError: a .raw file has no header.
        reason = _describe_unreadable(path) or (
            f"is not a readable audio file: {error}. "
            "Allowed: wav, flac, ogg and what libsndfile reads"
        )
        raise UserError(f"{path} {reason}.") from error
    if problem := _describe_bad_header(file):
        file.close()
        raise UserError(f"{path} {problem}.")
    return file


def _open_beside_fork(path: Path) -> soundfile.SoundFile:
    """Opens a file, also an mp3 beside a ``._`` file of macOS: libsndfile takes that for a resource
    fork and fails, unless it opens a descriptor, which has no name."""
    if not path.with_name(f"._{path.name}").exists():
        return soundfile.SoundFile(path)
    return soundfile.SoundFile(os.open(path, os.O_RDONLY), closefd=True)


def find_parts(path: Path, file: soundfile.SoundFile) -> list[Part] | None:
    """Returns the recordings in a file whose header does not tell its length; ``None`` for a file
    of one recording with a length.

    Raises ``UserError`` for a truncated or damaged file, as far as its bytes show without decoding.
    """
    try:
        parts = _split(path, file)
        problem = describe_wrong_size(path, file.format, file.frames)
        if parts is None:
            problem = problem or describe_length(file.frames, file.samplerate)
    except DamagedStream as error:
        problem = str(error)
    if problem:
        raise UserError(f"{path} {problem}.")
    return parts


def decode_parts(path: Path, parts: list[Part], rate_hz: int, channels: int) -> np.ndarray:
    """Returns the samples of all parts, one after the other, ``(frames, channels)`` float64.

    Raises ``UserError`` for a part that cannot be decoded, of another rate or number of channels,
    and for more than an hour.
    """
    decoded: list[np.ndarray] = []
    for part in parts:
        try:
            with _open_part(part) as file:
                if (file.samplerate, file.channels) != (rate_hz, channels):
                    raise UserError(
                        f"{path} joins recordings of different rates or channels. Cut it, or "
                        "convert it again."
                    )
                expected = None if part.is_mpeg else file.frames
                samples = _read_all(file, rate_hz)
        except soundfile.SoundFileError as error:
            raise describe_undecodable(path, error) from error
        if expected is not None and len(samples) < expected <= MAX_SECONDS * rate_hz:
            raise UserError(
                f"{path} holds {len(samples)} of the {expected} samples that its frames name. "
                "Copy or convert it again."
            )
        decoded.append(samples)
    samples = np.concatenate(decoded)
    if problem := describe_length(len(samples), rate_hz):
        raise UserError(f"{path} {problem}.")
    return samples


def describe_length(frames: int, rate_hz: int) -> str | None:
    """Returns what is wrong with a length; ``None`` for one that is read."""
    if frames < 1:
        return "holds no samples"
    if frames > MAX_SECONDS * rate_hz:
        return (
            f"is {frames / rate_hz:.0f} s long: "
            f"at most {MAX_SECONDS} s are read, so cut it into utterances"
        )
    return None


def describe_undecodable(path: Path, error: soundfile.SoundFileError) -> UserError:
    return UserError(f"{path} cannot be decoded: {error}. Convert it to wav or flac again.")


def _split(path: Path, file: soundfile.SoundFile) -> list[Part] | None:
    """Returns the recordings in a file; ``None`` for one that libsndfile reads whole."""
    if file.subtype.startswith("MPEG_LAYER"):
        content = path.read_bytes()
        if file.format != "MP3":  # in a WAV file
            content = content[find_samples(path, file.format)]
        return _make_parts(split_mpeg(content), is_mpeg=True)
    if file.format == "FLAC":
        return _make_parts(split_flac(path.read_bytes()))
    if file.format == "OGG":
        return _make_parts(_ogg.split_ogg(path.read_bytes()))
    if file.format in ("WAV", "WAVEX") and file.frames == 0:
        content_with_size = name_data_size(path)
        return _make_parts(None if content_with_size is None else [content_with_size])
    return None


def _make_parts(contents: list[bytes] | None, is_mpeg: bool = False) -> list[Part] | None:
    return None if contents is None else [Part(content, is_mpeg) for content in contents]


def _open_part(part: Part) -> soundfile.SoundFile:
    """Opens a part: of mp3 as a pipe, from which libsndfile reads as long as there are frames,
    where it would estimate the length of a file."""
    if not part.is_mpeg:
        return soundfile.SoundFile(io.BytesIO(part.content))
    reader, writer = os.pipe()
    threading.Thread(target=_write_all, args=(writer, part.content), daemon=True).start()
    return soundfile.SoundFile(reader, closefd=True)


def _write_all(descriptor: int, content: bytes) -> None:
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    except BrokenPipeError:  # the reader has stopped
        pass


def _read_all(file: soundfile.SoundFile, rate_hz: int) -> np.ndarray:
    """Returns samples to the end, at most a block beyond the longest that is allowed."""
    blocks: list[np.ndarray] = []
    frames = 0
    while frames <= MAX_SECONDS * rate_hz:
        blocks.append(file.read(_BLOCK_FRAMES, dtype="float64", always_2d=True))
        frames += len(blocks[-1])
        if len(blocks[-1]) < _BLOCK_FRAMES:
            break
    return np.concatenate(blocks)


def _describe_unreadable(path: Path) -> str | None:
    """Returns why libsndfile cannot open a file, where its bytes tell more than the error."""
    if (pointer := describe_lfs_pointer(path)) is not None:
        return pointer
    with path.open("rb") as file:
        magic = file.read(4)
    try:
        if magic == _ogg.MAGIC:
            _ogg.split_ogg(path.read_bytes())
    except DamagedStream as problem:
        return str(problem)
    return describe_unread_wav(path) if magic == b"RIFF" else None


def _describe_bad_header(file: soundfile.SoundFile) -> str | None:
    """Returns what is wrong with the rate or the channels; ``None`` for nothing."""
    if not MIN_RATE_HZ <= file.samplerate <= MAX_RATE_HZ:
        return f"has a rate of {file.samplerate} Hz: allowed are {MIN_RATE_HZ} to {MAX_RATE_HZ}"
    if not 1 <= file.channels <= MAX_CHANNELS:
        return f"has {file.channels} channels: allowed are 1 to {MAX_CHANNELS}"
    return None
