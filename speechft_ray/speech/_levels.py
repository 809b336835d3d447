"""Rules for recordings that reading would destroy: clipped, mixed to silence, or scaled to nothing.

A waveform has the range [-1, 1] and one channel. A file of floats may exceed that range, channels
of opposite sign cancel each other in the mean, and int16 values in a file of int32 are silence.
"""

from __future__ import annotations

import numpy as np

MOST_CLIPPED_ENERGY = 0.01
"""A recording is refused when clipping to full scale would remove more than this share of its
energy (a distortion of -20 dB). Below it, as with the overshoot of a resampler or a lossy codec,
samples are clipped."""
LEAST_MIXED_ENERGY = 0.1
"""A second of a recording is lost when the mean of its channels has less than this share of the
energy that the mean of independent channels has: for two equally loud ones, a correlation below
-0.9."""
MOST_CANCELLED_ENERGY = 0.1
"""A recording is refused when the seconds that are lost have more than this share of its energy."""
SILENT_PEAK = 2**-15
"""One step of 16 bits. A format with more bits, all of whose samples are within it, was scaled
wrongly: a loud int16 signal in int32 reaches half of it."""
QUIET_PEAK = 2**-8
"""Such a file is reported when it never reaches this: 16-bit values in 24 bits do not."""


def average_channels(samples: np.ndarray) -> np.ndarray:
    """Returns the mean of the channels of ``samples (frames, channels)``."""
    mono: np.ndarray = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)
    return mono


def describe_lost_signal(
    samples: np.ndarray, mono: np.ndarray, rate_hz: int, has_more_bits: bool
) -> str | None:
    """Returns what reading a whole recording would destroy, as the rest of a sentence; ``None`` for
    one that survives.

    ``samples``: ``(frames, channels)`` float64; ``mono``: their mean. ``has_more_bits``: its
    format has more than 16 bits and no losses.
    """
    peak = measure_peak(mono)
    if samples.shape[1] == 1 and peak <= 1 and not (has_more_bits and peak <= SILENT_PEAK):
        return None
    if not samples.any():
        return None
    if (cancelled := _measure_cancelled(samples, mono, rate_hz)) > MOST_CANCELLED_ENERGY:
        return (
            f"has channels of opposite sign: they cancel each other in the mean ({cancelled:.0%} "
            "of its energy). Export one channel, or invert one"
        )
    excess = float(np.square(np.maximum(np.abs(mono) - 1, 0)).sum())
    energy = float(np.square(mono).sum())
    if excess > MOST_CLIPPED_ENERGY * energy:
        return (
            f"reaches {peak:.6g} where 1 is full scale, and clipping would remove "
            f"{excess / energy:.0%} of its energy. Scale it to [-1, 1]"
            + (" (int16 values: divide by 32768)" if 128 < peak <= 2**15 else "")
        )
    if has_more_bits and peak <= SILENT_PEAK:
        return (
            f"reaches only {peak:.3g} of full scale, less than one step of 16 bits: it holds "
            "smaller numbers than its format (int16 values in int32?). Scale it to [-1, 1]"
        )
    return None


def measure_peak(mono: np.ndarray) -> float:
    """Returns the largest magnitude of a waveform, 0 for one without samples."""
    return float(max(mono.max(), -mono.min(), 0.0)) if mono.size else 0.0


def _measure_cancelled(samples: np.ndarray, mono: np.ndarray, rate_hz: int) -> float:
    """Returns the share of energy in the seconds that the mean of the channels does not keep."""
    channels = samples.shape[1]
    if channels == 1:
        return 0.0
    starts = np.arange(0, len(samples), rate_hz)
    before = np.add.reduceat(np.square(samples).mean(axis=1), starts)
    after = np.add.reduceat(np.square(mono), starts)
    is_lost = after * channels < LEAST_MIXED_ENERGY * before
    return float(before[is_lost].sum() / before.sum())
