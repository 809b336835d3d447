"""One chunk of the synthetic world in one fresh process: ``python -m <this module> PREFIX <
job.json``.

Reads ``{"seed": int, "takes": [...]}`` from standard input and writes ``PREFIX.pcm`` (int16
samples, one take after the other) and ``PREFIX.jsonl`` (one line per take: its sample count and
alignment). A process of its own, because espeak-ng repeats itself only from a fresh start with a
fixed order of calls; JSON and raw samples, because nothing here needs pickle.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from speechft_ray.speech.synthesis import espeak as _espeak
from speechft_ray.speech.synthesis.acoustics import render
from speechft_ray.speech.synthesis.phones import alignment
from speechft_ray.speech.synthesis.speakers import Take


def synthesise(job: dict[str, Any], prefix: Path) -> None:
    """Speaks and renders the takes of one job in order and writes both files."""
    speak = _espeak.start(job["seed"])
    with (
        prefix.with_suffix(".pcm").open("wb") as audio,
        prefix.with_suffix(".jsonl").open("w") as lines,
    ):
        for fields in job["takes"]:
            scene = Take(**fields)
            speech = speak(scene.text, scene.voice, scene.rate_wpm, scene.pitch, scene.pitch_range)
            wave, onsets = render(speech, scene)
            audio.write(wave.tobytes())
            lines.write(json.dumps({"samples": len(wave), "alignment": alignment(onsets)}) + "\n")


if __name__ == "__main__":
    synthesise(json.load(sys.stdin), Path(sys.argv[1]))
