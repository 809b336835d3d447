"""A small gcin-voice: four syllables with some of their tones, each by two speakers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.signal import resample_poly

from tests.speech.layouts.voices import synthesise_lines, write_audio

SYLLABLES = {"ㄇㄚ": "妈", "ㄅㄚ": "八", "ㄨㄛ": "窝", "ㄏㄠ": "蒿", "ㄊㄠ": "掏"}
NUMBERS = ("", "1", "2", "3", "4")
SPEAKERS = {"3": "cmn+m1", "5": "cmn+f2"}
RATE_HZ = 44_100


def lay_out(root: Path) -> Path:
    """Writes the tree below ``root`` and returns it."""
    for speaker, voice in SPEAKERS.items():
        waves = synthesise_lines(tuple((sign, voice) for sign in SYLLABLES.values()))
        for syllable, wave in zip(SYLLABLES, waves, strict=True):
            padded = np.concatenate([wave, np.zeros(800)])
            for index, number in enumerate(NUMBERS):
                samples = resample_poly(padded * (0.5 + 0.1 * index), 441, 160)
                write_audio(
                    root / "ogg" / f"{syllable}{number}" / f"{speaker}.ogg", samples, RATE_HZ
                )
    return root
