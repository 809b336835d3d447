"""Distances of merges by part of the encoder, against those of fine-tuned encoders in float64."""

from __future__ import annotations

import pytest
import torch

from speechft_ray.finetuning.diagnostics import compute_weight_distances
from speechft_ray.speech.encoders.base import FAMILIES, EncoderWeights
from speechft_ray.stages.distances import measure_weight_distances


def test_distances_by_part_are_those_of_the_diagnostics_in_four_digits() -> None:
    random = torch.Generator().manual_seed(0)
    shapes = {
        "feature_extractor.conv_layers.0.0.weight": (8, 1, 10),
        "post_extract_proj.weight": (16, 8),
        "encoder.layers.0.fc1.weight": (64, 16),
        "encoder.layers.0.fc1.bias": (64,),
        "encoder.layers.11.fc2.weight": (16, 64),
        "label_embs_concat": (3, 4),  # used in pre-training alone
    }
    start = {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}
    start["encoder.layers.0.fc1.bias"].zero_()
    moved = {
        name: value + 0.1 * torch.randn(value.shape, generator=random)
        for name, value in start.items()
    }
    one, other = (EncoderWeights(family="hubert", config={}, state=item) for item in (start, moved))
    family = FAMILIES.get("hubert")
    reference = compute_weight_distances(
        one, other, family.front_end_prefixes, family.pretraining_only_prefixes
    )
    assert list(reference) == ["front_end", "input", "layer_00", "layer_11"]
    assert measure_weight_distances(one, other) == pytest.approx(reference, rel=6e-4)
    assert set(measure_weight_distances(one, one).values()) == {0.0}
