"""All randomness of a run: every draw has its own seed, made of the run's seed and its place.

Nothing depends on how often a generator was asked before, so a resumed run draws what an unbroken
one would, and no generator state has to be saved.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch


class Draw(IntEnum):
    """What is drawn. The numbers are part of every result: never change or reuse one."""

    HEAD = 0
    EPOCH = 1
    WINDOW = 2
    CROP = 3
    UPDATE = 4
    STATISTICS = 5
    ADAPTER = 6
    MASK = 7
    DEV_MASK = 8


def generator(seed: int, draw: Draw, *place: int) -> np.random.Generator:
    """Returns a fresh numpy generator for one draw."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(int(draw), *place)))


def seed_torch(seed: int, draw: Draw, *place: int) -> None:
    """Seeds torch's global generators, which initialisation and dropout ask, for one draw."""
    sequence = np.random.SeedSequence(seed, spawn_key=(int(draw), *place))
    torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))
