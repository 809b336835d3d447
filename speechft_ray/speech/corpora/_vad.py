"""Energy-based voice activity detection: the ``silence`` effect of SoX in numpy.

s3prl reads VoxCeleb1 for speaker verification through SoX with ``gain -3.0`` and ``silence 1 0.1
0.1% -1 0.1 0.1%``. Speech starts with a tenth of a second above the threshold and lasts until a
tenth of a second is below it, which is dropped. The energy is the RMS of the last 20 ms, over
samples since the last pause.
"""

from __future__ import annotations

import numpy as np

from speechft_ray.core.units import SAMPLE_RATE_HZ
from speechft_ray.speech.corpora._reading import GAIN_MINUS_3_DB, Transform

THRESHOLD = 0.001
"""0.1 % of full scale."""
DURATION_SAMPLES = SAMPLE_RATE_HZ // 10
"""0.1 s above the threshold starts speech, 0.1 s below it ends speech."""
WINDOW_SAMPLES = SAMPLE_RATE_HZ // 50
"""20 ms, as in SoX."""


def remove_silence(wave: np.ndarray) -> np.ndarray:
    """Returns ``wave`` ``(samples,)`` without its pauses; empty when there is no speech."""
    power = np.concatenate([[0.0], np.cumsum(np.square(wave, dtype=np.float64))])
    loud_anywhere = _is_loud(power, 0, len(wave), 0)
    segments: list[np.ndarray] = []
    place = 0
    while place < len(wave):
        loud = loud_anywhere[place:].copy()
        head = min(len(wave), place + WINDOW_SAMPLES)
        loud[: head - place] = _is_loud(
            power, place, head, place
        )  # the window is empty after a pause
        begin = _find_first_run(loud, DURATION_SAMPLES)
        if begin is None:
            break
        pause = _find_first_run(~loud[begin + DURATION_SAMPLES :], DURATION_SAMPLES)
        end = len(wave) if pause is None else place + begin + DURATION_SAMPLES + pause
        segments.append(wave[place + begin : end])
        place = end + DURATION_SAMPLES
    return np.concatenate(segments) if segments else wave[:0]


def _is_loud(power: np.ndarray, start: int, stop: int, since: int) -> np.ndarray:
    """Returns, for each sample of ``[start, stop)``, whether the window that ends there is loud."""
    ends = np.arange(start + 1, stop + 1)
    energy = power[ends] - power[np.maximum(ends - WINDOW_SAMPLES, since)]
    loud: np.ndarray = np.sqrt(np.maximum(energy, 0.0) / WINDOW_SAMPLES) > THRESHOLD
    return loud


def _find_first_run(flags: np.ndarray, length: int) -> int | None:
    """Returns where the first run of at least ``length`` true values starts."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    starts, stops = edges[::2], edges[1::2]
    long_enough = np.flatnonzero(stops - starts >= length)
    return int(starts[long_enough[0]]) if len(long_enough) else None


REMOVE_SILENCE = Transform(
    name=f"{GAIN_MINUS_3_DB.name}, no pauses",
    apply=lambda wave: remove_silence(GAIN_MINUS_3_DB.apply(wave)),
    keeps_length=False,
)
