"""Removal of pauses, against the output of SoX 14.4.2 for the same waves."""

from __future__ import annotations

import numpy as np
import pytest

from speechft_ray.speech.corpora._vad import DURATION_SAMPLES, REMOVE_SILENCE, remove_silence

SOX: tuple[tuple[int, int, float], ...] = (
    (32839, 9877, 457.195),
    (27612, 9144, 2548.395),
    (28577, 15104, 2245.998),
    (14849, 6980, 24.951),
    (18527, 6731, 1389.795),
    (26045, 25981, 3398.729),
    (26718, 14744, 726.257),
    (22473, 10684, 890.057),
    (21129, 16684, 1224.967),
    (13120, 2796, 458.629),
    (24056, 5779, 5.552),
    (37267, 16844, 1181.724),
)
"""Samples in, samples out and their sum of magnitudes: ``sox in.wav -e float -b 32 out.wav channels
1 rate 16000 gain -3.0 silence 1 0.1 0.1% -1 0.1 0.1%`` of ``make_noise(0)``,
``make_noise(1)``, ... as 16-bit files."""


def make_noise(seed: int) -> np.ndarray:
    """Returns noise of many lengths and levels, some near the threshold: 16-bit values, float64."""
    draw = np.random.RandomState(seed)  # whose stream never changes
    parts = []
    for _ in range(12):
        samples = int(
            draw.choice(
                [draw.randint(1, 400), draw.randint(400, 3000), draw.randint(1500, 1700), 6000]
            )
        )
        level = draw.choice([0, 1e-4, 5e-4, 1.3e-3, 1.45e-3, 1.6e-3, 3e-3, 0.1, 0.5])
        parts.append(level * draw.uniform(-1.7, 1.7, samples))
    return np.round(np.concatenate(parts) * 32767) / 32768


@pytest.mark.parametrize(("seed", "reference"), list(enumerate(SOX)))
def test_the_same_samples_as_sox(seed: int, reference: tuple[int, int, float]) -> None:
    wave = make_noise(seed).astype(np.float32)
    speech = REMOVE_SILENCE.apply(wave)
    assert (len(wave), len(speech)) == reference[:2]
    assert abs(float(np.abs(speech, dtype=np.float64).sum()) - reference[2]) < 2e-3


def test_a_pause_of_a_tenth_of_a_second_ends_speech() -> None:
    tone = np.full(4_000, 0.5, dtype=np.float32)
    shorter, longer = (
        np.zeros(DURATION_SAMPLES - 1, np.float32),
        np.zeros(3 * DURATION_SAMPLES, np.float32),
    )
    speech = remove_silence(np.concatenate([longer, tone, shorter, tone, longer, tone]))
    tail = 319  # of the 20 ms window, in which the last of a tone still sounds
    assert len(speech) == 4_000 + len(shorter) + 4_000 + tail + 4_000
    assert remove_silence(longer).shape == (0,)
    assert remove_silence(tone[: DURATION_SAMPLES - 1]).shape == (0,)
    assert remove_silence(np.zeros(0, np.float32)).shape == (0,)
