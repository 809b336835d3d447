"""Synthesises one chunk of a corpus: ``python -m <this module> PREFIX < job.json``.

Reads ``{"seed": int, "utterances": [...]}`` from standard input. Writes ``PREFIX.pcm`` (int16
samples of all utterances in order) and ``PREFIX.jsonl`` (one line per utterance: its number of
samples and its alignment). Every chunk needs a fresh process: espeak-ng repeats its output only
from a fresh start with a fixed order of calls.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from speechft_ray.speech.synthesis.acoustics import render
from speechft_ray.speech.synthesis.espeak import start
from speechft_ray.speech.synthesis.phones import make_alignment
from speechft_ray.speech.synthesis.speakers import UtteranceSpec


def synthesise(job: dict[str, Any], prefix: Path) -> None:
    """Synthesises and renders the utterances of one job in order and writes both files."""
    speak = start(job["seed"])
    with (
        prefix.with_suffix(".pcm").open("wb") as audio,
        prefix.with_suffix(".jsonl").open("w") as lines,
    ):
        for fields in job["utterances"]:
            spec = UtteranceSpec(**fields)
            speech = speak(spec.text, spec.voice, spec.rate_wpm, spec.pitch, spec.pitch_range)
            wave, onsets = render(speech, spec)
            audio.write(wave.tobytes())
            line = {"samples": len(wave), "alignment": make_alignment(onsets)}
            lines.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    synthesise(json.load(sys.stdin), Path(sys.argv[1]))
