"""The relative distance of a merged model from its base."""

from __future__ import annotations

import math

import pytest
import torch

from speechft_ray.merging.distance import compute_relative_distance


def test_by_hand() -> None:
    base = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]]), "steps": torch.tensor([7])}
    merged = {"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([[2.0]]), "steps": torch.tensor([9])}
    assert compute_relative_distance(base, merged) == pytest.approx(math.sqrt(1 + 4) / 5)
    assert compute_relative_distance(base, base) == 0.0


def test_half_way_is_half_as_far_and_small_differences_of_large_models_count() -> None:
    generator = torch.Generator().manual_seed(0)
    base = {"w": torch.randn(300_000, generator=generator)}
    step = 1e-4 * torch.randn(300_000, generator=generator)
    full, half = (
        compute_relative_distance(base, {"w": base["w"] + alpha * step}) for alpha in (1.0, 0.5)
    )
    assert half == pytest.approx(full / 2, rel=1e-3)
    assert full == pytest.approx(1e-4, rel=0.02)
