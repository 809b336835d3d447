"""Reads recordings: any format of libsndfile, mixed to mono, resampled to 16 kHz float32."""

from __future__ import annotations

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
"""A longer file is a mistake (an uncut session, a forged header); the longest of SUPERB's corpora
are a few minutes."""
MIN_RATE_HZ, MAX_RATE_HZ = 4_000, 384_000
MAX_CHANNELS = 32

_UNKNOWN_BYTES = 0x7FFF_F000
"""A data chunk of at least so many bytes is what programs write that cannot go back to correct it
(sox, ffmpeg in a pipe)."""

_SPHERE_HEADER_BYTES = 1024
"""Length of a NIST SPHERE header: text lines, padded."""


@dataclass(frozen=True, kw_only=True)
class AudioInfo:
    """What a file holds. ``samples``: how many ``read_audio`` yields at 16 kHz. ``rate_hz``,
    ``channels``: its own."""

    samples: int
    rate_hz: int
    channels: int


def resolve_inside(root: Path, relative: str | Path) -> Path:
    """Returns the real path of ``relative`` below ``root``, every symbolic link followed.

    Raises ``UserError`` for a path that is absolute or ends up outside the root. The file need not
    exist.
    """
    base = root.resolve()
    try:
        found = (base / relative).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a NUL byte
        raise UserError(f"`{relative}` is not a usable path: {error}.") from error
    if Path(relative).is_absolute() or not found.is_relative_to(base):
        raise UserError(
            f"`{relative}` leaves the folder {root}: paths must be relative and stay inside it."
        )
    return found


def read_audio_info(path: Path) -> AudioInfo:
    """Returns what a file holds, without decoding all of it. Raises ``UserError`` as ``read_audio``
    does.

    A file cut short is found at its end: the last sample of each is decoded. Only formats that can
    hold NaN are read whole. What damage in the middle of a compressed file remains is found when it
    is read.
    """
    with _opened(path) as file:
        sound = AudioInfo(
            samples=_resampled_length(file.frames, file.samplerate),
            rate_hz=file.samplerate,
            channels=file.channels,
        )
        whole = file.subtype in ("FLOAT", "DOUBLE")
        if not whole:
            _read_last_sample(file, path)
    if whole:
        read_audio(path)
    return sound


def read_audio(
    path: str | Path, root: Path | None = None, part: tuple[int, int] | None = None
) -> np.ndarray:
    """Returns a recording as mono float32 in [-1, 1] at 16 kHz, shape ``(samples,)``.

    ``part`` is the stretch ``[start, stop)`` to return, in samples at 16 kHz; it ends with the
    file. In a file of that rate nothing else is decoded, so that an utterance of a long talk costs
    what an utterance costs.

    Channels are averaged. Other rates go through ``scipy.signal.resample_poly``: a polyphase filter
    with a fixed Kaiser window, well kept, in float64, and the same on every machine, which a corpus
    with an identity needs.

    With ``root``, ``path`` is relative to it and must stay inside. Raises ``UserError`` naming the
    file when it is missing, unreadable, empty, shorter than its header says, too long (an hour),
    outside 4 to 384 kHz, or holds NaN or infinite samples.
    """
    place = Path(path) if root is None else resolve_inside(root, path)
    with _opened(place) as file:
        rate_hz = file.samplerate
        start, stop = part if part is not None and rate_hz == SAMPLE_RATE_HZ else (0, file.frames)
        expected = max(0, min(stop, file.frames) - start)
        try:
            if start:
                file.seek(min(start, file.frames))
            sound = file.read(expected, dtype="float64", always_2d=True)  # (frames, channels)
        except soundfile.SoundFileError as error:
            raise UserError(
                f"{place} cannot be decoded: {error}. Convert it to wav or flac again."
            ) from error
    if len(sound) != expected:
        raise UserError(
            f"{place} holds {len(sound)} of the {expected} samples that its header names. Copy or convert it again."
        )
    if not np.isfinite(sound).all():
        raise UserError(
            f"{place} holds samples that are not finite numbers (NaN or infinity). Export it again."
        )
    mono = sound.mean(axis=1)
    up, down = _ratio(rate_hz)
    if up != down:
        mono = resample_poly(mono, up, down)
        mono = mono if part is None else mono[slice(*part)]
    # A float file or the resampler's ripple may pass full scale; an integer format would have
    # clipped there, too.
    return np.asarray(np.clip(mono, -1.0, 1.0), dtype=np.float32)


def _opened(path: Path) -> soundfile.SoundFile:
    """Opens a file and checks its header, before anything is decoded."""
    if not path.is_file():
        raise UserError(f"{path} does not exist or is not a file.")
    try:
        file = soundfile.SoundFile(path)
    except (
        soundfile.SoundFileError,
        OSError,
        TypeError,
    ) as error:  # TypeError: a .raw file names no format
        raise UserError(
            f"{path} is not a readable audio file: {error}. Allowed: wav, flac, ogg and what libsndfile reads."
        ) from error
    mistake = _header_mistake(file) or _cut_short(file, path)
    if mistake:
        file.close()
        raise UserError(f"{path} {mistake}.")
    return file


def _header_mistake(file: soundfile.SoundFile) -> str | None:
    if not MIN_RATE_HZ <= file.samplerate <= MAX_RATE_HZ:
        return f"has a rate of {file.samplerate} Hz: allowed are {MIN_RATE_HZ} to {MAX_RATE_HZ}"
    if not 1 <= file.channels <= MAX_CHANNELS:
        return f"has {file.channels} channels: allowed are 1 to {MAX_CHANNELS}"
    if file.frames < 1:
        return "holds no samples"
    if file.frames > MAX_SECONDS * file.samplerate:
        return f"is {file.frames / file.samplerate:.0f} s long: at most {MAX_SECONDS} s are read, so cut it into utterances"
    return None


def _read_last_sample(file: soundfile.SoundFile, path: Path) -> None:
    try:
        file.seek(file.frames - 1)
        found = len(file.read(1))
    except soundfile.SoundFileError as error:
        raise UserError(f"{path} ends too early: {error}. Copy or convert it again.") from error
    if not found:
        raise UserError(
            f"{path} holds less than the {file.frames} samples that its header names. Copy or convert it again."
        )


def _cut_short(file: soundfile.SoundFile, path: Path) -> str | None:
    """libsndfile takes a WAV or SPHERE file that was cut short for a shorter one; their headers
    tell."""
    if file.format == "NIST":
        return _sphere_cut_short(file, path)
    if file.format not in ("WAV", "WAVEX"):
        return None
    with path.open("rb") as raw:
        size_bytes = raw.seek(0, 2)
        place = 12
        while place + 8 <= size_bytes:
            raw.seek(place)
            name, promised = raw.read(4), int.from_bytes(raw.read(4), "little")
            if name == b"data":
                there = size_bytes - place - 8
                cut = there < promised < _UNKNOWN_BYTES
                return (
                    f"holds {there} of the {promised} bytes of audio that its header names. Copy it again"
                    if cut
                    else None
                )
            place += 8 + promised + promised % 2
    return None


def _sphere_cut_short(file: soundfile.SoundFile, path: Path) -> str | None:
    with path.open("rb") as raw:
        named = re.search(rb"\nsample_count -i (\d+)\s", raw.read(_SPHERE_HEADER_BYTES))
    if named is None or file.frames >= int(named.group(1)):
        return None
    return f"holds {file.frames} of the {int(named.group(1))} samples that its header names. Copy it again"


def _ratio(rate_hz: int) -> tuple[int, int]:
    common = gcd(SAMPLE_RATE_HZ, rate_hz)
    return SAMPLE_RATE_HZ // common, rate_hz // common


def _resampled_length(frames: int, rate_hz: int) -> int:
    up, down = _ratio(rate_hz)
    return -(-frames * up // down)  # resample_poly rounds up
