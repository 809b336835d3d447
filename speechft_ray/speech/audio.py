"""Reads recordings: any format of libsndfile, mixed to mono, resampled to 16 kHz float32."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from math import gcd
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import resample_poly

from speechft_ray.core.errors import UserError
from speechft_ray.core.units import SAMPLE_RATE_HZ

MAX_SECONDS = 3600
"""A longer file is taken for a mistake (an uncut session, a forged header). The longest files of
SUPERB's corpora are a few minutes."""
MIN_RATE_HZ, MAX_RATE_HZ = 4_000, 384_000
MAX_CHANNELS = 32

_UNKNOWN_BYTES = 0x7FFF_F000
"""Programs that cannot correct the header later (sox, ffmpeg in a pipe) write at least this as the
size of the data chunk."""

_SPHERE_HEADER_BYTES = 1024
"""Length of a NIST SPHERE header: text lines, padded."""


@dataclass(frozen=True, kw_only=True)
class AudioInfo:
    """The size of a recording. ``samples``: number that ``read_audio`` returns at 16 kHz.
    ``rate_hz``, ``channels``: those of the file."""

    samples: int
    rate_hz: int
    channels: int


def resolve_inside(root: Path, relative: str | Path) -> Path:
    """Returns the real path of ``relative`` below ``root``, with every symbolic link resolved.

    Raises ``UserError`` for a path that is absolute or leads outside the root, also through a link
    below it. The file need not exist.
    """
    base = root.resolve()
    try:
        path = (base / relative).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a NUL byte
        raise UserError(f"`{relative}` is not a usable path: {error}.") from error
    if not Path(relative).is_absolute() and path.is_relative_to(base):
        return path
    is_written = Path(relative).is_absolute() or not Path(
        os.path.normpath(base / relative)
    ).is_relative_to(base)
    if is_written:
        raise UserError(
            f"`{relative}` leaves the folder {root}: paths must be relative and stay inside it."
        )
    raise UserError(
        f"`{relative}` leaves the folder {root} through the link {_find_link(base, relative)}: "
        "rows of a manifest must stay inside its folder, so put the manifest into a folder above "
        "the recordings, or copy them."
    )


def _find_link(base: Path, relative: str | Path) -> str:
    """Returns the first link of a path that leads outside, and where it leads."""
    place = base
    for part in Path(relative).parts:
        place = place / part
        if place.is_symlink() and not place.resolve().is_relative_to(base):
            return f"{place.relative_to(base)} -> {place.readlink()}"
    return str(place)


def read_audio_info(path: Path) -> AudioInfo:
    """Returns the size of a recording without decoding all of it. Raises ``UserError`` as
    ``read_audio`` does.

    The last sample is decoded, so a truncated file raises. Only formats that can hold NaN are read
    whole. Damage in the middle of a compressed file raises when it is read.
    """
    with _open(path) as file:
        info = AudioInfo(
            samples=_compute_length(file.frames, file.samplerate),
            rate_hz=file.samplerate,
            channels=file.channels,
        )
        can_hold_nan = file.subtype in ("FLOAT", "DOUBLE")
        if not can_hold_nan:
            _check_last_sample(file, path)
    if can_hold_nan:
        read_audio(path)
    return info


def read_audio(
    path: str | Path, root: Path | None = None, part: tuple[int, int] | None = None
) -> np.ndarray:
    """Returns a recording as mono float32 in [-1, 1] at 16 kHz, shape ``(samples,)``.

    ``part`` is the range ``[start, stop)`` to return, in samples at 16 kHz; it is cut at the end of
    the file. In a file of that rate nothing else is decoded, so that an utterance of a long talk
    costs no more than a file of its own.

    Channels are averaged. Other rates are resampled by ``scipy.signal.resample_poly``: a polyphase
    filter with a fixed Kaiser window, in float64. Its result is the same on every machine, which
    the fingerprint of a corpus needs.

    With ``root``, ``path`` is relative to it and must stay inside. Raises ``UserError`` naming the
    file when it is missing, unreadable, empty, shorter than its header says, too long (an hour),
    outside 4 to 384 kHz, or holds NaN or infinite samples.
    """
    file_path = Path(path) if root is None else resolve_inside(root, path)
    with _open(file_path) as file:
        rate_hz = file.samplerate
        start, stop = part if part is not None and rate_hz == SAMPLE_RATE_HZ else (0, file.frames)
        expected = max(0, min(stop, file.frames) - start)
        try:
            if start:
                file.seek(min(start, file.frames))
            samples = file.read(expected, dtype="float64", always_2d=True)  # (frames, channels)
        except soundfile.SoundFileError as error:
            raise UserError(
                f"{file_path} cannot be decoded: {error}. Convert it to wav or flac again."
            ) from error
    if len(samples) != expected:
        raise UserError(
            f"{file_path} holds {len(samples)} of the {expected} samples that its header names. "
            "Copy or convert it again."
        )
    if not np.isfinite(samples).all():
        raise UserError(
            f"{file_path} holds samples that are not finite numbers (NaN or infinity). "
            "Export it again."
        )
    mono = samples.mean(axis=1)
    up, down = _resampling_factors(rate_hz)
    if up != down:
        mono = resample_poly(mono, up, down)
        mono = mono if part is None else mono[slice(*part)]
    # A float file or the resampler's ripple may exceed full scale, where an integer format would
    # have clipped too.
    return np.asarray(np.clip(mono, -1.0, 1.0), dtype=np.float32)


def _open(path: Path) -> soundfile.SoundFile:
    """Opens a file and checks its header, without decoding anything."""
    if not path.is_file():
        raise UserError(f"{path} does not exist or is not a file.")
    try:
        file = soundfile.SoundFile(path)
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        # TypeError: a .raw file has no header.
        raise UserError(
            f"{path} is not a readable audio file: {error}. "
            "Allowed: wav, flac, ogg and what libsndfile reads."
        ) from error
    problem = _describe_bad_header(file) or _describe_truncation(file, path)
    if problem:
        file.close()
        raise UserError(f"{path} {problem}.")
    return file


def _describe_bad_header(file: soundfile.SoundFile) -> str | None:
    """Returns what is wrong with the rate, the channels or the length; ``None`` for nothing."""
    if not MIN_RATE_HZ <= file.samplerate <= MAX_RATE_HZ:
        return f"has a rate of {file.samplerate} Hz: allowed are {MIN_RATE_HZ} to {MAX_RATE_HZ}"
    if not 1 <= file.channels <= MAX_CHANNELS:
        return f"has {file.channels} channels: allowed are 1 to {MAX_CHANNELS}"
    if file.frames < 1:
        return "holds no samples"
    if file.frames > MAX_SECONDS * file.samplerate:
        return (
            f"is {file.frames / file.samplerate:.0f} s long: "
            f"at most {MAX_SECONDS} s are read, so cut it into utterances"
        )
    return None


def _check_last_sample(file: soundfile.SoundFile, path: Path) -> None:
    try:
        file.seek(file.frames - 1)
        is_there = len(file.read(1)) == 1
    except soundfile.SoundFileError as error:
        raise UserError(f"{path} ends too early: {error}. Copy or convert it again.") from error
    if not is_there:
        raise UserError(
            f"{path} holds less than the {file.frames} samples that its header names. "
            "Copy or convert it again."
        )


def _describe_truncation(file: soundfile.SoundFile, path: Path) -> str | None:
    """Returns how much of a truncated WAV or SPHERE file is missing; ``None`` for a whole file.

    libsndfile opens such a file as a shorter recording, so the sizes in its header are compared
    with the file's.
    """
    if file.format == "NIST":
        return _describe_sphere_truncation(file, path)
    if file.format not in ("WAV", "WAVEX"):
        return None
    with path.open("rb") as raw:
        size_bytes = raw.seek(0, 2)
        offset = 12  # the first chunk
        while offset + 8 <= size_bytes:
            raw.seek(offset)
            name, chunk_bytes = raw.read(4), int.from_bytes(raw.read(4), "little")
            if name == b"data":
                data_bytes = size_bytes - offset - 8
                if not data_bytes < chunk_bytes < _UNKNOWN_BYTES:
                    return None
                return (
                    f"holds {data_bytes} of the {chunk_bytes} bytes of audio "
                    "that its header names. Copy it again"
                )
            offset += 8 + chunk_bytes + chunk_bytes % 2  # chunks are padded to even sizes
    return None


def _describe_sphere_truncation(file: soundfile.SoundFile, path: Path) -> str | None:
    with path.open("rb") as raw:
        match = re.search(rb"\nsample_count -i (\d+)\s", raw.read(_SPHERE_HEADER_BYTES))
    if match is None or file.frames >= int(match[1]):
        return None
    return (
        f"holds {file.frames} of the {int(match[1])} samples that its header names. Copy it again"
    )


def _resampling_factors(rate_hz: int) -> tuple[int, int]:
    common = gcd(SAMPLE_RATE_HZ, rate_hz)
    return SAMPLE_RATE_HZ // common, rate_hz // common


def _compute_length(frames: int, rate_hz: int) -> int:
    """Returns the number of samples after resampling to 16 kHz."""
    up, down = _resampling_factors(rate_hz)
    return -(-frames * up // down)  # resample_poly rounds up
