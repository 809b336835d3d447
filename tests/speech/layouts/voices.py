"""Speech of espeak-ng for the small copies of corpora, and functions that write their files."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import resample_poly

RATE_HZ = 16_000
VOICES = ("en-us+m1", "en-us+f2", "en-us+m3", "en-us+f4", "en-us+m7", "en-us+f5")
MANDARIN = "cmn+f2"

Line = tuple[str, str]
"""Text and voice."""


@lru_cache(maxsize=64)
def synthesise_lines(lines: tuple[Line, ...]) -> list[np.ndarray]:
    """Returns each line as float64 ``(samples,)`` at 16 kHz with peak 0.5, from one process."""
    root = str(Path(__file__).parents[3])
    path = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH", "")) if part)
    done = subprocess.run(
        [sys.executable, "-m", "tests.speech.layouts._espeak_process"],
        input=json.dumps(lines).encode(),
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    with np.load(io.BytesIO(done.stdout), allow_pickle=False) as waves:
        resampled = [
            resample_poly(waves[str(index)].astype(np.float64), 320, 441)
            for index in range(len(lines))
        ]
    return [0.5 * wave / np.abs(wave).max() for wave in resampled]


def assign_voices(texts: Sequence[str], count: int | None = None) -> tuple[Line, ...]:
    """Returns ``count`` texts with voices in turn; texts repeat with other voices."""
    total = len(texts) if count is None else count
    return tuple(
        (texts[i % len(texts)], VOICES[(i + i // len(texts)) % len(VOICES)]) for i in range(total)
    )


def write_audio(path: Path, wave: np.ndarray, rate_hz: int = RATE_HZ) -> Path:
    """Writes 16-bit audio in the format of the path's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate_hz)
    return path


def write_text(path: Path, lines: Sequence[str]) -> Path:
    """Writes lines of text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path
