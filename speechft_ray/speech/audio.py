"""Reads recordings: any format of libsndfile, mixed to mono, resampled to 16 kHz float32."""

from __future__ import annotations

from math import gcd
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import resample_poly

from speechft_ray.core.errors import UserError
from speechft_ray.core.units import SAMPLE_RATE_HZ

MAX_SECONDS = 3600
"""A longer file is a mistake (an uncut session, a forged header); the longest of SUPERB's corpora are a few minutes."""
MIN_RATE_HZ, MAX_RATE_HZ = 4_000, 384_000
MAX_CHANNELS = 32


def resolve_inside(root: Path, relative: str | Path) -> Path:
    """Returns the real path of ``relative`` below ``root``, every symbolic link followed.

    Raises ``UserError`` for a path that is absolute or ends up outside the root. The file need not exist.
    """
    base = root.resolve()
    try:
        found = (base / relative).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a NUL byte
        raise UserError(f"`{relative}` is not a usable path: {error}.") from error
    if Path(relative).is_absolute() or not found.is_relative_to(base):
        raise UserError(f"`{relative}` leaves the folder {root}: paths must be relative and stay inside it.")
    return found


def samples_at_16_khz(path: Path) -> int:
    """Returns how many samples ``read_audio`` will yield, from the header alone. Raises ``UserError`` as it does."""
    with _opened(path) as file:
        return _resampled_length(file.frames, file.samplerate)


def read_audio(path: str | Path, root: Path | None = None) -> np.ndarray:
    """Returns a recording as mono float32 in [-1, 1] at 16 kHz, shape ``(samples,)``.

    Channels are averaged. Other rates go through ``scipy.signal.resample_poly``: a polyphase filter with a fixed Kaiser window,
    well kept, in float64, and the same on every machine, which a corpus with an identity needs.

    With ``root``, ``path`` is relative to it and must stay inside. Raises ``UserError`` naming the file when it is missing,
    unreadable, empty, shorter than its header says, too long (an hour), outside 4 to 384 kHz, or holds NaN or infinite samples.
    """
    place = Path(path) if root is None else resolve_inside(root, path)
    with _opened(place) as file:
        expected, rate_hz = file.frames, file.samplerate
        try:
            sound = file.read(dtype="float64", always_2d=True)  # (frames, channels)
        except soundfile.SoundFileError as error:
            raise UserError(f"{place} cannot be decoded: {error}. Convert it to wav or flac again.") from error
    if len(sound) != expected:
        raise UserError(
            f"{place} holds {len(sound)} of the {expected} samples that its header names. Copy or convert it again."
        )
    if not np.isfinite(sound).all():
        raise UserError(f"{place} holds samples that are not finite numbers (NaN or infinity). Export it again.")
    mono = sound.mean(axis=1)
    up, down = _ratio(rate_hz)
    if up != down:
        mono = resample_poly(mono, up, down)
    # A float file or the resampler's ripple may pass full scale; an integer format would have clipped there, too.
    return np.asarray(np.clip(mono, -1.0, 1.0), dtype=np.float32)


def _opened(path: Path) -> soundfile.SoundFile:
    """Opens a file and checks its header, before anything is decoded."""
    if not path.is_file():
        raise UserError(f"{path} does not exist or is not a file.")
    try:
        file = soundfile.SoundFile(path)
    except (soundfile.SoundFileError, OSError, TypeError) as error:  # TypeError: a .raw file names no format
        raise UserError(
            f"{path} is not a readable audio file: {error}. Allowed: wav, flac, ogg and what libsndfile reads."
        ) from error
    mistake = _header_mistake(file)
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


def _ratio(rate_hz: int) -> tuple[int, int]:
    common = gcd(SAMPLE_RATE_HZ, rate_hz)
    return SAMPLE_RATE_HZ // common, rate_hz // common


def _resampled_length(frames: int, rate_hz: int) -> int:
    up, down = _ratio(rate_hz)
    return -(-frames * up // down)  # resample_poly rounds up
