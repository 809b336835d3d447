"""The corpus that SUPERB assigns to each task, as a folder in its real layout."""

from __future__ import annotations

from typing import Any

from tests.speech.layouts import (
    common_voice,
    fluent_speech_commands,
    iemocap,
    libri2mix,
    librispeech,
    quesst14,
    snips,
    speech_commands,
    voxceleb1,
)

LAYOUTS: dict[str, Any] = {
    "common_voice": common_voice,
    "fluent_speech_commands": fluent_speech_commands,
    "iemocap": iemocap,
    "libri2mix": libri2mix,
    "librispeech": librispeech,
    "quesst14": quesst14,
    "snips": snips,
    "speech_commands": speech_commands,
    "voxceleb1": voxceleb1,
}
NARROW: dict[str, Any] = {"projection": 8, "lstm_layers": 1, "lstm_hidden": 8}
ROWS: tuple[tuple[str, str, dict[str, Any], dict[str, Any]], ...] = (
    ("pr", "librispeech", {}, {"projection": 8}),
    ("asr", "librispeech", {}, NARROW),
    ("ks", "speech_commands", {"silence_crops": 2}, {}),
    ("qbe", "quesst14", {}, {}),
    ("sid", "voxceleb1", {}, {}),
    ("asv", "voxceleb1", {"task": "verification"}, {"width": 8, "pooled_width": 8}),
    ("sd", "libri2mix", {}, {}),
    ("er", "iemocap", {"fold": 2}, {}),
    ("ic", "fluent_speech_commands", {}, {}),
    ("sf", "snips", {}, NARROW),
    ("asr_zh", "common_voice", {}, NARROW),
)
"""Task, corpus, options of the corpus, options of the task."""
