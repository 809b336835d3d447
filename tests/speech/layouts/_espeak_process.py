"""Synthesises lines of text: JSON pairs of text and voice in, an npz of int16 at 22,050 Hz out."""

from __future__ import annotations

import io
import json
import sys

import numpy as np

from speechft_ray.speech.synthesis.espeak import start

speak = start(0)
waves = {
    str(index): speak(text, voice, 175, 50, 50).wave
    for index, (text, voice) in enumerate(json.load(sys.stdin))
}
buffer = io.BytesIO()
np.savez(buffer, **waves)  # type: ignore[arg-type]
sys.stdout.buffer.write(buffer.getvalue())
