"""A small Speech Commands v0.01: 10 keywords, 2 other words, background noise, a test set."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from tests.speech.layouts.voices import VOICES, synthesise_lines, write_audio, write_text

KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
OTHERS = ("bed", "marvin")
VALIDATION = ("a69b9b3e", "439c84f4", "409c962a", "dbaf8fc6")
TESTING = ("bb05582b", "97f4c236", "f2e59fea", "fdb5155e")
"""Speakers of the archive's own ``validation_list.txt`` and ``testing_list.txt``."""
INVENTED = tuple(hashlib.md5(f"speaker {index}".encode()).hexdigest()[:8] for index in range(5))
SPEAKERS = (*VALIDATION, *TESTING, *INVENTED)
NOISES = ("doing_the_dishes", "pink_noise")


def lay_out(root: Path) -> Path:
    """Writes both archives below ``root`` and returns it."""
    training, test = root / "speech_commands_v0.01", root / "speech_commands_test_set_v0.01"
    words = (*KEYWORDS, *OTHERS)
    waves = synthesise_lines(tuple((word, voice) for word in words for voice in VOICES[:3]))
    for place, word in enumerate(words):
        for index, speaker in enumerate(SPEAKERS):
            write_audio(
                training / word / f"{speaker}_nohash_{index % 2}.wav", waves[3 * place + index % 3]
            )
        write_audio(
            test / (word if word in KEYWORDS else "_unknown_") / f"{SPEAKERS[place]}_nohash_0.wav",
            waves[3 * place],
        )
    noise = np.random.default_rng(0)
    for name in NOISES:
        write_audio(
            training / "_background_noise_" / f"{name}.wav", 0.1 * noise.standard_normal(100_000)
        )
    write_audio(test / "_silence_" / "0.wav", 0.1 * noise.standard_normal(16_000))
    write_text(training / "_background_noise_" / "README.md", ["background"])
    write_text(training / "validation_list.txt", [])
    return root
