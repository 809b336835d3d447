"""A small TED-LIUM 3: two training talks, as links to data/, one talk of dev and one of test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from tests.speech.layouts.voices import RATE_HZ, assign_voices, synthesise_lines, write_text

PAUSE_SECONDS = 0.4
TEXTS = (
    "it was a warm evening in town",
    "we all know that they don't want to come",
    "thank you very much to all of you",
)
CAPTIONS = (
    "it was a warm evening in town",
    "we all know that they don 't want to come",
    "thank you very <unk> to all of you",
)
"""Captions of ``TEXTS``; the last has an unknown word."""
TALKS = {
    "train": ("AdaLovelace_2014", "BoYang_2009P"),
    "dev": ("CarlSagan_2010",),
    "test": ("DoraMaar_2011",),
}


def lay_out(root: Path) -> Path:
    """Writes the tree below ``root`` and returns it.

    Every talk has the three sentences with pauses between them.
    """
    names = [(split, talk) for split, talks in TALKS.items() for talk in talks]
    waves = iter(synthesise_lines(assign_voices(TEXTS, len(TEXTS) * len(names))))
    pause = np.zeros(round(PAUSE_SECONDS * RATE_HZ))
    for split, talk in names:
        lines, parts, start = [], [pause], PAUSE_SECONDS
        lines.append(
            f"{talk} 1 inter_segment_gap 0 {start:.2f} <o,f0,> ignore_time_segment_in_scoring"
        )
        for words in CAPTIONS:
            parts += [next(waves), pause]
            stop = sum(map(len, parts)) / RATE_HZ - PAUSE_SECONDS
            lines.append(f"{talk} 1 {talk} {start:.2f} {stop:.2f} <o,f0,female> {words}")
            start = stop + PAUSE_SECONDS
        write_text(root / "legacy" / split / "stm" / f"{talk}.stm", lines)
        audio = root / ("data" if split == "train" else f"legacy/{split}") / "sph" / f"{talk}.sph"
        audio.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(audio, np.concatenate(parts), RATE_HZ, format="NIST", subtype="PCM_16")
    (root / "legacy/train/sph").symlink_to("../../data/sph")
    write_text(root / "README", ["This is the TED-LIUM corpus release 3"])
    return root
