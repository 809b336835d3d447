"""Inputs of measures whose values by other programs are kept in ``data/``; how they were made
stands in those files."""

from __future__ import annotations

import math
import random

import numpy as np

from speechft_ray.superb.measures.der import Turn


def wave_frames(length: int, seed: int, dim: int = 5) -> np.ndarray:
    """Frames from sines, the same on every machine up to rounding; ``(length, dim)``."""
    frames = [
        [
            math.sin(0.37 * (seed + 1) * i + 1.7 * d + seed) + 0.3 * math.cos(i * d)
            for d in range(dim)
        ]
        for i in range(length)
    ]
    return np.array(frames)


QUERIES = [wave_frames(length, seed) for seed, length in enumerate((1, 5, 12, 30))]
DOCUMENTS = [wave_frames(length, seed + 9) for seed, length in enumerate((3, 17, 40, 75))]


def random_turns(seed: int, speakers: int, count: int) -> list[Turn]:
    """Turns that overlap, touch and repeat, in whole units of time."""
    draw = random.Random(seed)
    starts = [draw.randrange(0, 900) for _ in range(count)]
    return [
        Turn(f"s{draw.randrange(speakers)}", start, start + draw.randrange(20, 200))
        for start in starts
    ]


RECORDINGS = [
    (random_turns(seed, 1 + seed % 4, 6), random_turns(seed + 50, 1 + seed % 3, 7))
    for seed in range(8)
]
"""``(hypothesis, reference)``."""
