"""Forty short recordings with a manifest, the same bytes on every machine: integers alone."""

from __future__ import annotations

import struct
import wave
from collections.abc import Iterator
from pathlib import Path

SAMPLES = 4800
"""0.3 s at 16 kHz."""
SPLITS = {"train": 16, "dev": 12, "test": 12}
SOUNDS, TEXTS = ("low", "high"), ("ab", "ba")


def write_recordings(folder: Path) -> Path:
    """Writes the WAV files and their manifest; returns the path of the manifest."""
    folder.mkdir(parents=True)
    rows = ["path\tsplit\tsound\ttext"]
    for split, count in SPLITS.items():
        for index in range(count):
            name = f"{split}-{index}.wav"
            with wave.open(str(folder / name), "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(16_000)
                period = 40 + 8 * (index % 2) + 3 * (index // 2 % 2)
                samples = tone_with_noise(period, seed=len(rows))
                file.writeframes(struct.pack(f"<{SAMPLES}h", *samples))
            labels = (SOUNDS[index % 2], TEXTS[index // 2 % 2])
            rows.append("\t".join((name, split, *labels)))
    manifest = folder / "manifest.tsv"
    manifest.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return manifest


def tone_with_noise(period: int, seed: int) -> Iterator[int]:
    """Yields samples: a square wave, and noise of a linear congruential generator (Numerical
    Recipes, 1664525 and 1013904223)."""
    state = seed
    for place in range(SAMPLES):
        state = (1664525 * state + 1013904223) % 2**32
        yield (600 if place % period < period // 2 else -600) + (state >> 20) - 2048
