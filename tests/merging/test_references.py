"""Compares the merge methods with ``references.py``: numpy, float64, from the papers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from speechft_ray.merging.algebra import merge
from tests.merging import references
from tests.merging.references import Model
from tests.merging.task_vectors import SHAPES, UNEQUAL, combine_onto_zeros, draw_vectors


def assert_close(actual: Model, expected: Model, tolerance: float = 1e-10) -> None:
    assert set(actual) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(
            actual[name], value, rtol=tolerance, atol=tolerance, err_msg=name
        )


@pytest.mark.parametrize("density", [0.2, 0.6, 1.0])
def test_ties(density: float) -> None:
    vectors = draw_vectors(3)
    assert_close(
        combine_onto_zeros("ties", {"density": density}, vectors), references.ties(vectors, density)
    )
    expected = references.ties(vectors, density, UNEQUAL)
    assert_close(
        combine_onto_zeros("ties", {"density": density, "weights": UNEQUAL}, vectors), expected
    )


@pytest.mark.parametrize("density", [0.1, 0.5])
def test_ties_like_mergekit(density: float) -> None:
    vectors = draw_vectors(3)
    params = {"density": density, "like": "mergekit", "weights": UNEQUAL}
    assert_close(
        combine_onto_zeros("ties", params, vectors),
        references.ties_like_mergekit(vectors, density, UNEQUAL),
    )


@pytest.mark.parametrize("consensus", [False, True])
@pytest.mark.parametrize(("density", "gamma"), [(0.9, 0.01), (0.5, 0.1), (0.95, 0.3)])
def test_breadcrumbs(consensus: bool, density: float, gamma: float) -> None:
    vectors = draw_vectors(3)
    params = {"density": density, "gamma": gamma, "consensus": consensus}
    assert_close(
        combine_onto_zeros("breadcrumbs", params, vectors),
        references.breadcrumbs(vectors, density, gamma, consensus),
    )


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_slerp_is_a_rotation_between_tensors_of_one_length(t: float) -> None:
    vectors = [
        {name: value / np.linalg.norm(value) for name, value in model.items()}
        for model in draw_vectors(2)
    ]
    assert_close(combine_onto_zeros("slerp", {"t": t}, vectors), references.slerp(vectors, t), 1e-9)


def test_slerp_of_weights_turns_about_zero() -> None:
    source = np.random.default_rng(1)
    base, one, two = ({"w": source.standard_normal((4, 5))} for _ in range(3))
    states = [
        {"w": torch.tensor(model["w"] / np.linalg.norm(model["w"]))} for model in (base, one, two)
    ]
    actual = merge("slerp", {"t": 0.3, "on": "weights"}, states[0], states[1:], 1.0)
    expected = references.slerp([{"w": state["w"].numpy()} for state in states[1:]], 0.3)
    assert_close({"w": actual["w"].numpy()}, expected)


def test_slerp_falls_back_to_the_straight_line_between_parallel_tensors() -> None:
    vectors = [
        {"w": np.array([1.0, 2.0, 2.0]), "v": np.array([1.0])},
        {"w": np.array([2.0, 4.0, 4.0]), "v": np.array([-3.0])},
    ]
    assert_close(
        combine_onto_zeros("slerp", {}, vectors),
        {"w": np.array([1.5, 3.0, 3.0]), "v": np.array([-1.0])},
    )


def test_slerp_still_turns_at_an_angle_of_a_tenth() -> None:
    """cos 0.1 = 0.995, below the 0.9995 above which it is a straight line, of a shorter middle."""
    tips = [np.array([math.cos(angle), math.sin(angle)]) for angle in (0.0, 0.1, 0.05)]
    first, second, middle = ({"w": tip} for tip in tips)
    assert_close(combine_onto_zeros("slerp", {}, [first, second]), middle, 1e-9)
    straight = {"w": (tips[0] + tips[1]) / 2}
    assert_close(combine_onto_zeros("slerp", {"lerp_above": 0.99}, [first, second]), straight)


@pytest.mark.parametrize("first", [0, 1, 2])
def test_karcher_of_directions_that_cancel_stays_at_the_first(first: int) -> None:
    """Three at 120 degrees, whose mean is rounding errors alone; mean length 2."""
    angles = [2 * math.pi * (first + place) / 3 for place in range(3)]
    tips = [np.array([math.cos(angle), math.sin(angle)]) for angle in angles]
    vectors = [{"w": length * tip} for length, tip in zip((1, 2, 3), tips, strict=True)]
    assert_close(combine_onto_zeros("karcher", {}, vectors), {"w": 2 * tips[0]}, 1e-6)


@pytest.mark.parametrize("donors", [2, 3])
def test_karcher(donors: int) -> None:
    names = ("encoder.layers.0.fc2.bias", "encoder.pos_conv.0.weight_g", "layer_norm.weight")
    vectors = [{name: model[name] for name in names} for model in draw_vectors(donors)]
    actual = combine_onto_zeros("karcher", {"steps": 100, "tolerance": 1e-9}, vectors)
    assert_close(actual, references.map_tensors(vectors, references.karcher), 1e-6)


def test_karcher_of_two_is_the_middle_of_their_slerp() -> None:
    vectors = [
        {name: value / np.linalg.norm(value) for name, value in model.items()}
        for model in draw_vectors(2)
    ]
    assert_close(
        combine_onto_zeros("karcher", {"steps": 100}, vectors), references.slerp(vectors, 0.5), 1e-6
    )


@pytest.mark.parametrize("donors", [2, 3])
def test_model_stock(donors: int) -> None:
    vectors = draw_vectors(donors)
    assert_close(combine_onto_zeros("model_stock", {}, vectors), references.model_stock(vectors))


def test_model_stock_of_donors_that_cancel_stays_at_the_base() -> None:
    vectors = [{"w": np.array([1.0, 2.0])}, {"w": np.array([-1.0, -2.0])}]
    assert_close(combine_onto_zeros("model_stock", {}, vectors), {"w": np.zeros(2)})


@pytest.mark.parametrize("density", [0.1, 0.4, 1.0])
def test_sce(density: float) -> None:
    vectors = draw_vectors(3)
    assert_close(
        combine_onto_zeros("sce", {"density": density}, vectors), references.sce(vectors, density)
    )


@pytest.mark.parametrize("donors", [2, 3])
def test_tsv_m(donors: int) -> None:
    vectors = draw_vectors(donors)
    assert_close(combine_onto_zeros("tsv_m", {}, vectors), references.tsv_m(vectors), 1e-8)


def test_tsv_m_boosts_to_the_value_that_reaches_the_share_exactly() -> None:
    """Half of the sums 6 and 9 is reached by 3 and by 8, the largest singular values."""
    vectors = [{"w": np.diag([3.0, 2.0, 1.0, 0.0])}, {"w": np.diag([0.0, 0.0, 8.0, 1.0])}]
    boosted = combine_onto_zeros("tsv_m", {"boost": 0.5}, vectors)
    assert_close(boosted, {"w": np.diag([3.0, 3.0, 8.0, 8.0])})
    # 0.55 of 6 is more than 3, so the weakest kept value 2 is reached.
    higher = combine_onto_zeros("tsv_m", {"boost": 0.55}, vectors)
    assert_close(higher, {"w": np.diag([3.0, 2.0, 8.0, 8.0])})


def test_iso_c() -> None:
    vectors = draw_vectors(3)
    assert_close(combine_onto_zeros("iso_c", {}, vectors), references.iso_c(vectors), 1e-8)


def test_wudi() -> None:
    vectors = draw_vectors(3)
    actual = combine_onto_zeros("wudi", {"steps": 60, "learning_rate": 1e-3}, vectors)
    assert_close(actual, references.wudi(vectors, 60, 1e-3), 1e-8)
    name = "encoder.layers.0.fc1.weight"
    assert np.abs(actual[name] - sum(model[name] for model in vectors)).max() > 1e-3, (
        "it did not descend"
    )


def test_regmean_is_the_best_layer_for_the_inputs_of_all_donors() -> None:
    vectors, source, name = draw_vectors(3), np.random.default_rng(2), "encoder.layers.0.fc1.weight"
    inputs = [
        source.standard_normal((rows, 9)) * source.uniform(0.2, 2.0, 9) for rows in (40, 60, 30)
    ]
    statistics = [{f"gram:{name}": torch.tensor(rows.T @ rows / len(rows))} for rows in inputs]
    actual = combine_onto_zeros("regmean", {"off_diagonal": 1.0}, vectors, statistics=statistics)
    tensors = [model[name] for model in vectors]
    assert_close({name: actual[name]}, {name: references.regmean(tensors, inputs)}, 1e-5)
    for other in set(SHAPES) - {name}:
        np.testing.assert_allclose(
            actual[other], np.mean([model[other] for model in vectors], axis=0), rtol=1e-12
        )
    grams = [rows.T @ rows / len(rows) for rows in inputs]
    damped = [0.9 * gram + 0.1 * np.diag(np.diag(gram)) for gram in grams]
    expected = sum(
        tensor @ gram for tensor, gram in zip(tensors, damped, strict=True)
    ) @ np.linalg.inv(sum(damped))
    assert_close(
        {name: combine_onto_zeros("regmean", {}, vectors, statistics=statistics)[name]},
        {name: expected},
        1e-5,
    )


def test_regmean_gives_dead_inputs_the_mean() -> None:
    vectors = [{"w": np.array([[1.0, 5.0]])}, {"w": np.array([[3.0, 7.0]])}]
    gram = torch.tensor([[2.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    actual = combine_onto_zeros(
        "regmean", {}, vectors, statistics=[{"gram:w": gram}, {"gram:w": 3 * gram}]
    )["w"]
    np.testing.assert_allclose(actual, [[(1 + 3 * 3) / 4, 6.0]], rtol=1e-6)


def test_fisher_is_a_mean_weighed_by_information() -> None:
    vectors, source = draw_vectors(3), np.random.default_rng(3)
    names = ["encoder.layers.0.fc1.weight", "layer_norm.weight"]
    information = [
        {name: source.gamma(0.5, 1.0, SHAPES[name]) * size for name in names}
        for size in (1.0, 30.0, 0.1)
    ]
    statistics = [
        {f"fisher:{name}": torch.tensor(value) for name, value in item.items()}
        for item in information
    ]
    for balance in (True, False):
        actual = combine_onto_zeros(
            "fisher", {"balance": balance, "weights": UNEQUAL}, vectors, statistics=statistics
        )
        means = [
            np.mean(np.concatenate([value.ravel() for value in item.values()]))
            for item in information
        ]
        for name in names:
            shares = [
                weight * (item[name] / mean + 1e-6) * (1 if balance else mean)
                for weight, item, mean in zip(UNEQUAL, information, means, strict=True)
            ]
            expected = sum(
                share * model[name] for share, model in zip(shares, vectors, strict=True)
            ) / sum(shares)
            np.testing.assert_allclose(actual[name], expected, rtol=1e-9)
        for name in set(SHAPES) - set(names):  # nothing gathered: the weights alone
            expected = sum(
                weight * model[name] for weight, model in zip(UNEQUAL, vectors, strict=True)
            )
            np.testing.assert_allclose(actual[name], expected, rtol=1e-9)


@pytest.mark.parametrize("balance", [True, False])
def test_fisher_without_any_information_is_the_weighted_mean(balance: bool) -> None:
    vectors = [{"w": np.array([1.0, 5.0])}, {"w": np.array([3.0, 1.0])}]
    statistics = [{"fisher:w": torch.zeros(2, dtype=torch.float64)}] * 2
    params = {"balance": balance, "weights": [1, 3]}
    actual = combine_onto_zeros("fisher", params, vectors, statistics=statistics)
    assert_close(actual, {"w": np.array([2.5, 2.0])})


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_statistics_follow_their_donor(method: str) -> None:
    vectors, source, name = draw_vectors(3), np.random.default_rng(4), "encoder.layers.2.fc1.weight"
    roots = [source.standard_normal((7, 7)) for _ in vectors]
    kind = {"fisher": "fisher", "regmean": "gram"}[method]
    statistics = [
        {f"{kind}:{name}": torch.tensor(root @ root.T if kind == "gram" else root**2)}
        for root in roots
    ]
    forward = combine_onto_zeros(method, {}, vectors, statistics=statistics)
    assert_close(
        combine_onto_zeros(method, {}, vectors[::-1], statistics=statistics[::-1]), forward, 1e-7
    )
    assert (
        np.abs(
            combine_onto_zeros(method, {}, vectors[::-1], statistics=statistics)[name]
            - forward[name]
        ).max()
        > 1e-3
    )


DEPTH = {"encoder.layers.1.fc1.weight": 0.5, "encoder.layers.2.fc1.weight": 1.0}
"""Position of a tensor between the first and the last layer, from 0 to 1; 0 for all others, the
numbered convolutions of the front end among them."""


def test_lines_rises_with_depth_for_one_donor() -> None:
    (vector,) = draw_vectors(1)
    actual = combine_onto_zeros("lines", {"slope": 0.6}, [vector])
    assert_close(
        actual, {name: value * (0.4 + 0.6 * DEPTH.get(name, 0.0)) for name, value in vector.items()}
    )


@pytest.mark.parametrize("merged", ["sum", "ties"])
def test_lines_starts_from_the_ratio_of_norms_for_several(merged: str) -> None:
    vectors = draw_vectors(3)
    total = {name: np.sum([model[name] for model in vectors], axis=0) for name in SHAPES}
    start = total if merged == "sum" else references.ties(vectors, 0.2)
    norms = [
        sum(float(np.abs(value).sum()) for value in model.values()) for model in (total, start)
    ]
    shallow = norms[0] / norms[1] / 3
    assert merged == "ties" or shallow == pytest.approx(1 / 3)
    actual = combine_onto_zeros("lines", {"slope": 0.2, "merged": merged}, vectors)
    assert_close(
        actual,
        {name: value * (shallow + 0.2 * DEPTH.get(name, 0.0)) for name, value in start.items()},
    )


def test_layerwise_has_a_factor_for_every_part_of_an_encoder() -> None:
    vectors = draw_vectors(2)
    params = {"layers": [0.1, 0.2, 0.3], "front_end": 0.4, "position": 0.5, "rest": 0.6}
    factors = {
        "encoder.layers.0": 0.1,
        "encoder.layers.1": 0.2,
        "encoder.layers.2": 0.3,
        "feature": 0.4,
        "encoder.pos": 0.5,
    }
    actual = combine_onto_zeros("layerwise", params, vectors)
    for name, value in actual.items():
        factor = next((number for start, number in factors.items() if name.startswith(start)), 0.6)
        np.testing.assert_allclose(
            value, factor * (vectors[0][name] + vectors[1][name]) / 2, rtol=1e-12
        )
