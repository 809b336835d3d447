"""Seeded task vectors in the shapes of a HuBERT, and merges that return the combined task vector.

The shapes are those of a convolution of one channel, weight-normalised factors, vectors, matrices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from speechft_ray.merging.algebra import merge
from tests.merging.references import Model

SHAPES = {
    "encoder.layers.0.fc1.weight": (12, 9),
    "encoder.layers.0.fc2.bias": (9,),
    "encoder.layers.1.fc1.weight": (9, 12),
    "encoder.layers.2.fc1.weight": (7, 7),
    "encoder.pos_conv.0.weight_g": (1, 1, 4),
    "encoder.pos_conv.0.weight_v": (6, 2, 4),
    "feature_extractor.conv_layers.0.0.weight": (8, 1, 10),
    "feature_extractor.conv_layers.2.0.weight": (5, 5, 3),
    "layer_norm.weight": (9,),
}

UNEQUAL = [0.5, 0.3, 0.2]
"""Weights of three donors, which sum to 1."""


def draw_vectors(count: int, seed: int = 0) -> list[Model]:
    """Returns task vectors that share part of their step, with a scale per tensor."""
    source = np.random.default_rng(seed)
    shared = {name: source.standard_normal(shape) for name, shape in SHAPES.items()}
    scales = (0.02, 0.1, 0.5)
    return [
        {
            name: scales[index % 3] * (0.6 * shared[name] + 0.8 * source.standard_normal(shape))
            for index, (name, shape) in enumerate(SHAPES.items())
        }
        for _ in range(count)
    ]


def combine_onto_zeros(
    method: str, params: Mapping[str, Any], vectors: Sequence[Model], **more: Any
) -> Model:
    """Returns the combined task vector: a merge onto a base of zeros, in float64, with alpha 1."""
    donors = [
        {name: torch.tensor(value, dtype=torch.float64) for name, value in model.items()}
        for model in vectors
    ]
    base = {name: torch.zeros_like(value) for name, value in donors[0].items()}
    return {
        name: value.numpy()
        for name, value in merge(method, params, base, donors, 1.0, **more).items()
    }
