"""Encodes and decodes with the ffmpeg that comes in a wheel, the judge of decoded audio."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import imageio_ffmpeg
import numpy as np


def run_ffmpeg(arguments: Sequence[str], content: bytes = b"") -> bytes:
    """Runs ffmpeg with ``content`` as its input, and returns its output. Raises
    ``CalledProcessError`` when it fails."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *arguments]
    return subprocess.run(command, input=content, capture_output=True, check=True).stdout


def encode(samples: np.ndarray, rate_hz: int, path: Path, options: Sequence[str] = ()) -> None:
    """Writes ``samples (frames, channels)`` to a file that ffmpeg can correct when it ends."""
    run_ffmpeg(
        [*_describe_input(samples, rate_hz), *options, str(path)],
        samples.astype("<f4").tobytes(),
    )


def encode_into_pipe(
    samples: np.ndarray, rate_hz: int, format_: str, options: Sequence[str] = ()
) -> bytes:
    """Returns what ffmpeg writes into a pipe, where no header can be corrected."""
    return run_ffmpeg(
        [*_describe_input(samples, rate_hz), *options, "-f", format_, "pipe:1"],
        samples.astype("<f4").tobytes(),
    )


def decode(path: Path, channels: int) -> np.ndarray:
    """Returns all samples at the rate at which ffmpeg decodes, ``(frames, channels)`` float64."""
    return np.frombuffer(
        run_ffmpeg(["-i", str(path), "-f", "f64le", "-c:a", "pcm_f64le", "pipe:1"]), "<f8"
    ).reshape(-1, channels)


def _describe_input(samples: np.ndarray, rate_hz: int) -> list[str]:
    channels = str(samples.shape[1])
    return ["-f", "f32le", "-ar", str(rate_hz), "-ac", channels, "-i", "pipe:0"]
