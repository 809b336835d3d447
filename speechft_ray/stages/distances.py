"""Measures how far a merge is from the pre-trained encoder, by part of the encoder."""

from __future__ import annotations

import math

from speechft_ray.finetuning.penalties import encoder_part
from speechft_ray.speech.encoders.base import FAMILIES, EncoderWeights

DIGITS = 4
"""Significant digits: float32 sums have them whatever the order in which threads add."""


def measure_weight_distances(
    pretrained: EncoderWeights, merged: EncoderWeights
) -> dict[str, float]:
    """Returns |theta - theta0| / |theta0| by part, as ``finetuning.diagnostics`` does for
    fine-tuned encoders: ``front_end``, ``input``, ``layer_00``, ...

    Parts whose pre-trained weights are all zero are left out. Each tensor is added up in float32,
    in a fifth of the time of float64.
    """
    family = FAMILIES.get(pretrained.family)
    front_end, left_out = (
        tuple(prefixes)
        for prefixes in (family.front_end_prefixes, family.pretraining_only_prefixes)
    )
    squares: dict[str, list[float]] = {}
    for name, before in pretrained.state.items():
        if name.startswith(left_out) or not before.is_floating_point():
            continue
        part = "front_end" if name.startswith(front_end) else encoder_part(name)
        sums = squares.setdefault(part, [0.0, 0.0])
        sums[0] += float((merged.state[name].float() - before.float()).square_().sum())
        sums[1] += float(before.float().square().sum())
    return {
        part: float(f"{math.sqrt(difference / size):.{DIGITS}g}")
        for part, (difference, size) in sorted(squares.items())
        if size > 0
    }
