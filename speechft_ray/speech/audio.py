"""Reads recordings: any format of libsndfile, mixed to mono, resampled to 16 kHz float32."""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from speechft_ray.core.errors import UserError
from speechft_ray.core.units import SAMPLE_RATE_HZ
from speechft_ray.speech._decoding import (
    decode_parts,
    describe_undecodable,
    find_parts,
    open_audio,
)
from speechft_ray.speech._levels import average_channels, describe_lost_signal, measure_peak

_MORE_BITS = frozenset({"PCM_24", "PCM_32", "ALAC_20", "ALAC_24", "ALAC_32", "FLOAT", "DOUBLE"})
"""Encodings without losses that have more than 16 bits."""

_COMPRESSED = frozenset({"FLAC", "OGG", "MP3"})
"""Formats whose decoder notices damage."""


@dataclass(frozen=True, kw_only=True)
class AudioInfo:
    """The size of a recording.

    - ``samples``: number that ``read_audio`` returns at 16 kHz.
    - ``rate_hz``, ``channels``: those of the file.
    - ``peak``: largest magnitude of the mean of the channels, 1 being full scale; ``None`` where
      nothing made it necessary to decode the file.
    - ``is_longer``: the header of the file tells another length than its content has, so that
      ``samples`` was found by decoding.
    """

    samples: int
    rate_hz: int
    channels: int
    peak: float | None = None
    is_longer: bool = False


class _Decoded(NamedTuple):
    """``mono``: mean of the channels at ``rate_hz``, float64, shape ``(frames,)``."""

    mono: np.ndarray
    rate_hz: int
    channels: int
    is_longer: bool


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


def read_audio_info(path: Path, is_thorough: bool = False) -> AudioInfo:
    """Returns the size of a recording. Raises ``UserError`` as ``read_audio`` does.

    Decoded are the last sample, so that a truncated file raises, and all of a file that reading may
    destroy (several channels, more than 16 bits) or whose header does not tell its length. Damage
    in the middle of other compressed files raises when they are read, or here where
    ``is_thorough``: then they are decoded as a whole.
    """
    with open_audio(path) as file:
        if find_parts(path, file) is None:
            _check_last_sample(file, path)
            if file.channels == 1 and file.subtype not in _MORE_BITS:
                if is_thorough and file.format in _COMPRESSED:
                    _decode(path)
                samples = _compute_length(file.frames, file.samplerate)
                return AudioInfo(samples=samples, rate_hz=file.samplerate, channels=1)
    decoded = _decode(path)
    return AudioInfo(
        samples=_compute_length(len(decoded.mono), decoded.rate_hz),
        rate_hz=decoded.rate_hz,
        channels=decoded.channels,
        peak=measure_peak(decoded.mono),
        is_longer=decoded.is_longer,
    )


def read_audio(
    path: str | Path, root: Path | None = None, part: tuple[int, int] | None = None
) -> np.ndarray:
    """Returns a recording as mono float32 in [-1, 1] at 16 kHz, shape ``(samples,)``.

    ``part`` is the range ``[start, stop)`` to return, in samples at 16 kHz; it is cut at the end of
    the file. In a file of that rate nothing else is decoded, so that an utterance of a long talk
    costs no more than a file of its own.

    Channels are averaged. Other rates are resampled by ``scipy.signal.resample_poly``: a polyphase
    filter with a fixed Kaiser window, in float64. Its result is the same on every machine, which
    the fingerprint of a corpus needs. Recordings that follow each other in one file are one.

    With ``root``, ``path`` is relative to it and must stay inside. Raises ``UserError`` naming the
    file when it is missing, unreadable, empty, shorter than its header says, too long (an hour),
    outside 4 to 384 kHz, holds NaN or infinite samples, or, read as a whole, would be destroyed by
    that (``_levels``).
    """
    file_path = Path(path) if root is None else resolve_inside(root, path)
    decoded = _decode(file_path, part)
    mono = decoded.mono
    up, down = _resampling_factors(decoded.rate_hz)
    if up != down:
        from scipy.signal import resample_poly  # slow to import, and not for files at 16 kHz

        mono = resample_poly(mono, up, down)
        mono = mono if part is None else mono[slice(*part)]
    # A float file or the resampler's ripple may exceed full scale, where an integer format would
    # have clipped too.
    return np.asarray(np.clip(mono, -1.0, 1.0), dtype=np.float32)


def hash_samples(
    path: Path, part: tuple[int, int] | None = None, at_most: int | None = None
) -> str:
    """Returns a hash of the samples of a recording, before they are resampled: equal for every file
    that decodes to the same mean of channels at the same rate, whatever its format.

    ``part`` is that of ``read_audio``, and of its range only the first ``at_most`` samples are
    hashed. Raises ``UserError`` as ``read_audio`` does.
    """
    with open_audio(path) as file:
        rate_hz = file.samplerate
    if part is not None and rate_hz != SAMPLE_RATE_HZ:
        mono, rate_hz = read_audio(path, part=part)[:at_most], SAMPLE_RATE_HZ
    else:
        start, stop = part or (0, sys.maxsize)
        stop = stop if at_most is None else min(stop, start + at_most)
        mono = _decode(path, (start, stop), at_any_rate=True).mono
    digest = hashlib.sha256(f"{rate_hz} ".encode())
    digest.update(mono.astype("<f4").tobytes())
    return digest.hexdigest()


def _decode(
    path: Path, part: tuple[int, int] | None = None, *, at_any_rate: bool = False
) -> _Decoded:
    """Returns the samples of a file: of all of it, unless ``part`` is a range of samples and the
    file has 16 kHz (or ``at_any_rate``)."""
    with open_audio(path) as file:
        rate_hz, channels = file.samplerate, file.channels
        is_part = part is not None and (at_any_rate or rate_hz == SAMPLE_RATE_HZ)
        span = part if is_part else None
        parts = find_parts(path, file)
        if parts is None:
            samples = _read_range(file, path, span)
        else:
            samples = decode_parts(path, parts, rate_hz, channels)
        is_longer = parts is not None and len(samples) != file.frames
        if parts is not None and span is not None:
            samples = samples[slice(*span)]
        has_more_bits = file.subtype in _MORE_BITS
    if not np.isfinite(samples).all():
        raise UserError(
            f"{path} holds samples that are not finite numbers (NaN or infinity). Export it again."
        )
    mono = average_channels(samples)
    # A part of a recording may be silent, or have nothing but an echo.
    if part is None and (problem := describe_lost_signal(samples, mono, rate_hz, has_more_bits)):
        raise UserError(f"{path} {problem}.")
    return _Decoded(mono, rate_hz, channels, is_longer)


def _read_range(file: soundfile.SoundFile, path: Path, span: tuple[int, int] | None) -> np.ndarray:
    start, stop = span or (0, file.frames)
    expected = max(0, min(stop, file.frames) - start)
    try:
        if start:
            file.seek(min(start, file.frames))
        samples: np.ndarray = file.read(expected, dtype="float64", always_2d=True)
    except soundfile.SoundFileError as error:
        raise describe_undecodable(path, error) from error
    if len(samples) != expected:
        raise UserError(
            f"{path} holds {len(samples)} of the {expected} samples that its header names. "
            "Copy or convert it again."
        )
    return samples


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


def _resampling_factors(rate_hz: int) -> tuple[int, int]:
    common = gcd(SAMPLE_RATE_HZ, rate_hz)
    return SAMPLE_RATE_HZ // common, rate_hz // common


def _compute_length(frames: int, rate_hz: int) -> int:
    """Returns the number of samples after resampling to 16 kHz."""
    up, down = _resampling_factors(rate_hz)
    return -(-frames * up // down)  # resample_poly rounds up
