"""Random numbers of a run: every draw has its own seed, derived from the run's seed and its place.

No draw depends on earlier draws. A resumed run therefore draws the same numbers as an uninterrupted
one, and no generator state has to be saved.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """Purpose of a draw. The numbers are part of every result: never change or reuse one."""

    HEAD = 0
    EPOCH = 1
    WINDOW = 2
    CROP = 3
    UPDATE = 4
    STATISTICS = 5
    ADAPTER = 6
    MASK = 7
    DEV_MASK = 8


def make_generator(seed: int, stream: Stream, *place: int) -> np.random.Generator:
    """Returns a new numpy generator for one draw."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(int(stream), *place)))


def seed_torch(seed: int, stream: Stream, *place: int) -> None:
    """Seeds torch's global generators, which initialisation and dropout use, for one draw."""
    sequence = np.random.SeedSequence(seed, spawn_key=(int(stream), *place))
    torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))
