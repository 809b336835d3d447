"""TIES, computed by hand: the trim, the elected signs, the mean."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from speechft_ray.core.errors import SpecError
from speechft_ray.merging.algebra import merge
from speechft_ray.merging.base import validate_params


def combine_onto_zeros(
    params: dict[str, Any], *vectors: dict[str, list[float]]
) -> dict[str, list[float]]:
    """Returns the combined task vector: a merge onto a base of zeros with alpha 1."""
    donors = [{key: torch.tensor(values) for key, values in vector.items()} for vector in vectors]
    base = {key: torch.zeros_like(tensor) for key, tensor in donors[0].items()}
    return {
        key: tensor.tolist() for key, tensor in merge("ties", params, base, donors, 1.0).items()
    }


def test_trim_keeps_one_more_than_the_share() -> None:
    vector = {"w": [float(value) for value in range(1, 11)]}
    assert combine_onto_zeros({"density": 0.2}, vector) == {
        "w": [0.0] * 7 + [8.0, 9.0, 10.0]
    }  # int(10 * 0.2) + 1 = 3
    assert combine_onto_zeros({"density": 0.05}, vector) == {
        "w": [0.0] * 9 + [10.0]
    }  # int(0.5) + 1 = 1
    assert combine_onto_zeros({"density": 1.0}, vector) == vector


def test_trim_keeps_all_that_tie_with_the_threshold() -> None:
    assert combine_onto_zeros({"density": 0.2}, {"w": [1.0, -2.0, 2.0, 2.0, 9.0]}) == {
        "w": [0.0, -2.0, 2.0, 2.0, 9.0]
    }


def test_trim_scope_is_the_whole_model_or_each_tensor() -> None:
    vector = {"big": [10.0, 20.0, 30.0, 40.0], "small": [0.1, 0.2, 0.3, 0.4]}
    assert combine_onto_zeros({"density": 0.25, "scope": "global"}, vector)["small"] == [
        0.0,
        0.0,
        0.0,
        0.0,
    ]
    per_tensor = combine_onto_zeros({"density": 0.25, "scope": "tensor"}, vector)
    assert per_tensor["big"] == [0.0, 0.0, 30.0, 40.0]
    assert per_tensor["small"] == pytest.approx([0.0, 0.0, 0.3, 0.4])


def test_the_elected_sign_alone_is_averaged() -> None:
    one, two, three = {"w": [1.0, 1.0, 4.0]}, {"w": [3.0, -5.0, 0.0]}, {"w": [-2.0, 2.0, 2.0]}
    # sums 2, -2, 6: + takes (1 + 3) / 2, - takes -5 / 1, + takes (4 + 2) / 2 since zeros do not
    # count
    assert combine_onto_zeros({"density": 1.0}, one, two, three) == {"w": [2.0, -5.0, 3.0]}


def test_count_elects_the_majority_of_signs() -> None:
    one, two, three = {"w": [1.0, 1.0]}, {"w": [1.0, 1.0]}, {"w": [-5.0, 4.0]}
    assert combine_onto_zeros({"density": 1.0, "elect": "mass"}, one, two, three) == {
        "w": [-5.0, 2.0]
    }
    assert combine_onto_zeros({"density": 1.0, "elect": "count"}, one, two, three) == {
        "w": [1.0, 2.0]
    }


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        (
            [3.0, 3.0],
            1.0,
        ),  # the signs of the model sum to +2: a cancelled position takes its positive value
        ([-3.0, -3.0], -1.0),
        ([3.0, -3.0], -1.0),  # they cancel as well: it acts as -
    ],
)
def test_a_cancelled_position_takes_the_sign_of_the_model(
    others: list[float], expected: float
) -> None:
    one, two = {"a": [1.0], "b": others}, {"a": [-1.0], "b": others}
    assert combine_onto_zeros({"density": 1.0}, one, two)["a"] == [expected]


def test_scale_multiplies_the_merged_vector() -> None:
    one, two = {"w": [1.0, 1.0]}, {"w": [3.0, -5.0]}
    assert combine_onto_zeros({"density": 1.0, "scale": 0.5}, one, two) == {"w": [1.0, -2.5]}


def test_a_lone_donor_is_only_trimmed() -> None:
    assert combine_onto_zeros({"density": 0.5}, {"w": [1.0, -2.0, 3.0, -4.0]}) == {
        "w": [0.0, -2.0, 3.0, -4.0]
    }


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"density": 0}, r"density: must be greater than 0, but is 0 instead"),
        ({"density": 20}, r"density: must be at most 1, but is 20 instead"),
        ({"scope": "layer"}, r"scope: must be 'global' or 'tensor', but is 'layer' instead"),
        ({"scale": float("nan")}, r"scale: must be a finite number"),
        ({"densty": 0.2}, r"densty: unknown field `densty`. Did you mean `density`\?"),
    ],
)
def test_mistakes_in_parameters(params: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        validate_params("ties", params)
