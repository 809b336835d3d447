"""Units of audio and time that all packages share."""

from __future__ import annotations

SAMPLE_RATE_HZ = 16_000
"""All audio inside the package is mono float32 at this rate, which all encoders of the paper
expect."""

FRAME_STRIDE_SAMPLES = 320
"""Hop of one encoder frame: 20 ms (product of the HuBERT / wav2vec 2.0 convolution strides
5*2*2*2*2*2*2)."""

FRAME_FIELD_SAMPLES = 400
"""Receptive field of one frame: 25 ms, from the convolutions of HuBERT, wav2vec 2.0 and WavLM
(kernels 10, 3, 3, 3, 3, 2, 2 with the strides above; HuBERT paper, section III-A). Shorter
audio has no frame. Frame i is centred on sample 320 i + 200."""


def frame_count(samples: int) -> int:
    """Returns the frames that the convolutional front end yields for so many samples.

    0 when they are fewer than one receptive field.
    """
    return max(0, (samples - FRAME_FIELD_SAMPLES) // FRAME_STRIDE_SAMPLES + 1)


def format_duration(seconds: float) -> str:
    """Returns seconds as ``42 s``, ``3 min 05 s`` or ``2 h 07 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
