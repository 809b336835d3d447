"""The linear merge, computed by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from speechft_ray.core.errors import SpecError, UserError
from speechft_ray.merging.algebra import merge
from speechft_ray.merging.base import validate_params

BASE = {"w": torch.tensor([1.0, 1.0, 1.0])}
ONE = {"w": torch.tensor([2.0, 1.0, 5.0])}  # task vector (1, 0, 4)
TWO = {"w": torch.tensor([1.0, 3.0, -3.0])}  # task vector (0, 2, -4)


@pytest.mark.parametrize(
    ("params", "alpha", "expected"),
    [
        ({}, 1.0, [1.5, 2.0, 1.0]),  # the mean
        ({}, 0.5, [1.25, 1.5, 1.0]),
        ({"normalize": False}, 1.0, [2.0, 3.0, 1.0]),  # task arithmetic: the sum
        ({"weights": [3, 1]}, 1.0, [1.75, 1.5, 3.0]),
        ({"weights": [3, 1], "normalize": False}, 0.25, [1.75, 1.5, 3.0]),
        ({"weights": [1, -1], "normalize": False}, 1.0, [2.0, -1.0, 9.0]),
        ({"weights": [0, 1]}, 1.0, [1.0, 3.0, -3.0]),
    ],
)
def test_weighted_sums(params: dict[str, Any], alpha: float, expected: list[float]) -> None:
    assert merge("linear", params, BASE, [ONE, TWO], alpha)["w"].tolist() == expected


def test_the_mean_shares_alpha_among_the_donors() -> None:
    """Paper Eq. 3: with two donors and alpha 0.25 each contributes an eighth of its task vector."""
    merged = merge("linear", {}, BASE, [ONE, TWO], 0.25)["w"]
    assert torch.equal(
        merged, BASE["w"] + 0.125 * (ONE["w"] - BASE["w"]) + 0.125 * (TWO["w"] - BASE["w"])
    )


def test_one_weight_per_donor() -> None:
    assert validate_params("linear", {"weights": [1, 2, 3]}, donors=3)
    with pytest.raises(UserError, match=r"must be 3 for merge method `linear`.*but is 2 instead"):
        validate_params("linear", {"weights": [1, 2, 3]}, donors=2)
    with pytest.raises(UserError, match="must be at least 1"):
        merge("linear", {}, BASE, [], 0.5)


def test_weights_that_cannot_be_normalized() -> None:
    with pytest.raises(SpecError, match="`weights` sum to 0"):
        validate_params("linear", {"weights": [1, -1]})
    assert validate_params("linear", {"weights": [1, -1], "normalize": False})
