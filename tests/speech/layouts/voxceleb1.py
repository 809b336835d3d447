"""A small VoxCeleb1: 6 speakers in dev and 2 in test, 2 videos each, with both lists."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.speech.layouts.voices import VOICES, synthesise_lines, write_audio, write_text

DEV = tuple(f"id100{number:02d}" for number in (1, 2, 3, 4, 5, 6))
TEST = ("id10270", "id10271")
VIDEOS = ("0Ab_cdEFgh1", "na8-QEFmj44")
LONG = "well, I think that we all had a wonderful time"
SHORT = "thank you"


def lay_out(root: Path) -> Path:
    """Writes the tree below ``root`` and returns it.

    The third recording of every video is shorter than 2 s.
    """
    names = [
        f"{speaker}/{video}/{n:05d}.wav"
        for speaker in (*DEV, *TEST)
        for video in VIDEOS
        for n in (1, 2, 3)
    ]
    waves = synthesise_lines(tuple((text, voice) for voice in VOICES for text in (LONG, SHORT)))
    for index, name in enumerate(names):
        speaker = index // 6
        wave = waves[2 * (speaker % 6) + (index % 3 == 2)]
        pause = np.zeros(3_000 + 100 * index)
        part = "dev" if speaker < len(DEV) else "test"
        write_audio(
            root / part / "wav" / name,
            np.concatenate([pause, wave, pause, wave[: 4_000 + 10 * index]]),
        )
    splits = [f"{(1, 2, 3)[index % 3]} {name}" for index, name in enumerate(names)]
    write_text(root / "iden_split.txt", splits)
    a, b, c = (
        f"{TEST[0]}/{VIDEOS[0]}/00001.wav",
        f"{TEST[0]}/{VIDEOS[1]}/00002.wav",
        f"{TEST[1]}/{VIDEOS[0]}/00001.wav",
    )
    write_text(root / "voxceleb1_test_v2.txt", [f"1 {a} {b}", f"0 {a} {c}", f"0 {b} {c}"])
    return root
