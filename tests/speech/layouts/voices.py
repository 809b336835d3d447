"""Real synthesised speech for the fixture trees: espeak-ng in a process of its own, each batch of
lines spoken once."""

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
def spoken(lines: tuple[Line, ...]) -> list[np.ndarray]:
    """Returns each line as float64 at 16 kHz, peak 0.5, ``(samples,)``. One process speaks them
    all."""
    root = str(Path(__file__).parents[3])
    path = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH", "")) if part)
    done = subprocess.run(
        [sys.executable, "-m", "tests.speech.layouts._speaking"],
        input=json.dumps(lines).encode(),
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    with np.load(io.BytesIO(done.stdout), allow_pickle=False) as waves:
        heard = [
            resample_poly(waves[str(index)].astype(np.float64), 320, 441)
            for index in range(len(lines))
        ]
    return [0.5 * wave / np.abs(wave).max() for wave in heard]


def lines_of(texts: Sequence[str], count: int | None = None) -> tuple[Line, ...]:
    """Returns texts with voices in turn; ``count`` lines when the texts shall repeat with other
    voices."""
    total = len(texts) if count is None else count
    return tuple(
        (texts[i % len(texts)], VOICES[(i + i // len(texts)) % len(VOICES)]) for i in range(total)
    )


def write(path: Path, wave: np.ndarray, rate_hz: int = RATE_HZ) -> Path:
    """Writes 16-bit audio in the format of the path's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate_hz)
    return path


def text(path: Path, lines: Sequence[str]) -> Path:
    """Writes lines of text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path
