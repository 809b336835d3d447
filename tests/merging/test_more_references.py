"""Compares further merge methods with ``more_references.py``: numpy, float64, from the papers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from speechft_ray.core.errors import SpecError, UserError
from speechft_ray.merging.algebra import merge
from speechft_ray.merging.base import validate_params
from tests.merging import more_references as references
from tests.merging.references import Model, map_tensors, slerp
from tests.merging.task_vectors import SHAPES, UNEQUAL, combine_onto_zeros, draw_vectors
from tests.merging.test_references import assert_close

VECTORS = draw_vectors(3)


@pytest.mark.parametrize(
    ("method", "params", "expected", "tolerance"),
    [
        ("magmax", {}, references.magmax(VECTORS), 1e-12),
        ("nearswap", {"t": 0.05}, references.nearswap(VECTORS, 0.05), 1e-12),
        ("ram", {"epsilon": 0.05}, references.ram(VECTORS, 0.05), 1e-12),
        (
            "ram",
            {"epsilon": 0.2, "gain": 0.3, "gain_limit": 0.5},
            references.ram(VECTORS, 0.2, 0.3, 0.5),
            1e-12,
        ),
        ("iso_cts", {"common": 0.4}, references.iso_cts(VECTORS, 0.4), 1e-8),
        ("iso_cts", {}, references.iso_cts(VECTORS, 0.8), 1e-8),
        ("tsv_m", {"boost": 0.3}, references.tsv_m_boosted(VECTORS, 0.3), 1e-8),
        ("knots", {}, references.knots(VECTORS, 0.2), 1e-7),
        ("knots", {"density": 0.6}, references.knots(VECTORS, 0.6), 1e-7),
        ("lors", {"rank": 0.3, "density": 0.2}, references.lors(VECTORS, 0.3, 0.2), 1e-8),
        ("star", {}, references.star(VECTORS, 0.4), 1e-8),
        ("star", {"share": 0.9}, references.star(VECTORS, 0.9), 1e-8),
        ("metagpt", {}, references.metagpt(VECTORS), 1e-12),
        ("consensus", {}, references.consensus(VECTORS, 0.4, 2), 1e-12),
        (
            "consensus",
            {"threshold": 0.6, "min_donors": 1},
            references.consensus(VECTORS, 0.6, 1),
            1e-12,
        ),
        ("pcb", {}, references.pcb(VECTORS, 0.1), 1e-9),
        ("pcb", {"ratio": 0.7}, references.pcb(VECTORS, 0.7), 1e-9),
    ],
)
def test_method_is_its_reference(
    method: str, params: dict[str, Any], expected: Model, tolerance: float
) -> None:
    assert_close(combine_onto_zeros(method, params, VECTORS), expected, tolerance)


@pytest.mark.parametrize(
    ("params", "variant"),
    [
        ({"elect": "normfrac"}, ([0.2] * 3, "normfrac", "mean")),
        ({"elect": "normmass", "density": 0.6}, ([0.6] * 3, "normmass", "mean")),
        ({"elect": "none", "density": 0.6}, ([0.6] * 3, "none", "mean")),
        ({"aggregate": "max", "density": 0.5}, ([0.5] * 3, "mass", "max")),
        ({"density": [0.1, 1.0, 0.4]}, ([0.1, 1.0, 0.4], "mass", "mean")),
        ({"like": "mergelm", "density": 0.3}, ([0.3] * 3, "mass", "mean", "mask_rate")),
        ({"rescale": "l1", "density": 0.3}, ([0.3] * 3, "mass", "mean", "threshold", True)),
    ],
)
def test_ties_variants(params: dict[str, Any], variant: tuple[Any, ...]) -> None:
    assert_close(
        combine_onto_zeros("ties", params, VECTORS), references.ties_variant(VECTORS, *variant)
    )


def test_mask_rates_keep_one_position_more_where_the_share_is_not_whole() -> None:
    vectors = [{"w": np.arange(1.0, 8.0)}]
    for like, count in (("original", 2), ("mergelm", 3)):
        merged = combine_onto_zeros("ties", {"like": like, "density": 0.2}, vectors)["w"]
        assert np.count_nonzero(merged) == count, like
    dare = {"density": 1.0, "like": "mergelm"}
    assert np.count_nonzero(combine_onto_zeros("dare_ties", dare, vectors)["w"]) == 3


def test_multislerp_is_one_step_of_the_mean_on_the_sphere() -> None:
    for weights in ([1.0, 1.0, 1.0], UNEQUAL):
        actual = combine_onto_zeros("multislerp", {"weights": weights}, VECTORS)

        def reference(tensors: list[Any], weights: list[float] = weights) -> Any:
            return references.multislerp(tensors, weights)

        assert_close(actual, map_tensors(VECTORS, reference), 1e-10)


def test_multislerp_of_directions_that_cancel_is_their_weighted_sum() -> None:
    vectors = [{"w": np.array([3.0, 0.0])}, {"w": np.array([-1.0, 0.0])}]
    assert_close(combine_onto_zeros("multislerp", {}, vectors), {"w": np.array([1.0, 0.0])})


def test_slices_of_a_tensor_turn_by_their_own_angle() -> None:
    first, second = ({"w": model["encoder.layers.0.fc1.weight"]} for model in draw_vectors(2))
    for axis, along in ((1, "last"), (0, "first")):
        unit = [
            {"w": each["w"] / np.linalg.norm(each["w"], axis=axis, keepdims=True)}
            for each in (first, second)
        ]
        actual = combine_onto_zeros("slerp", {"along": along, "t": 0.3}, unit)["w"]
        expected = np.stack(
            [
                slerp([{"w": np.take(each["w"], place, axis=1 - axis)} for each in unit], 0.3)["w"]
                for place in range(first["w"].shape[1 - axis])
            ],
            axis=1 - axis,
        )
        np.testing.assert_allclose(actual, expected, rtol=1e-10)


def test_arcee_fusion_keeps_important_changes() -> None:
    source = np.random.default_rng(8)
    base = {name: source.standard_normal(shape) for name, shape in SHAPES.items()}
    (vector,) = draw_vectors(1, seed=8)
    donor = {name: torch.tensor(base[name] + vector[name]) for name in base}
    merged = merge("arcee_fusion", {}, {k: torch.tensor(v) for k, v in base.items()}, [donor], 1.0)
    for name, start in base.items():
        expected = start + references.arcee_fusion(start, vector[name])
        np.testing.assert_allclose(merged[name].numpy(), expected, rtol=1e-12, err_msg=name)
        assert (expected != start).sum() < start.size / 2, name


def test_selective_attention_adds_the_second_donor_in_the_attention() -> None:
    names = {
        "encoder.layers.0.self_attn.q_proj.weight": 0.5 ** (0.2 * 1 / 2),
        "encoder.layers.1.self_attn.v_proj.bias": 0.5**0.2,
        "encoder.layers.1.self_attn.out_proj.weight": 1.0,
        "encoder.layers.1.fc1.weight": 1.0,
        "post_extract_proj.weight": 1.0,
    }
    source = np.random.default_rng(9)
    first, second = ({name: source.standard_normal(3) for name in names} for _ in "ab")
    actual = combine_onto_zeros("selective_attention", {}, [first, second])
    for name, factor in names.items():
        expected = factor * first[name] + (1 - factor) * second[name]
        np.testing.assert_allclose(actual[name], expected, rtol=1e-12, err_msg=name)


def test_parts_of_a_layer_have_factors() -> None:
    parts = {
        "encoder.layers.0.self_attn.q_proj.weight": 0.1,
        "encoder.layers.0.attention.k_proj.weight": 0.2,
        "encoder.layers.1.self_attn.v_proj.weight": 0.3 * 0.5,
        "encoder.layers.1.self_attn.out_proj.weight": 0.4 * 0.5,
        "encoder.layers.1.feed_forward.intermediate_dense.weight": 0.6 * 0.5,
        "encoder.layers.0.fc2.bias": 0.6,
        "encoder.layers.0.self_attn_layer_norm.weight": 0.7,
        "encoder.layer_norm.weight": 1.0,
    }
    vector = {name: np.ones(2) for name in parts}
    params = {"q": 0.1, "k": 0.2, "v": 0.3, "out": 0.4, "ffn": 0.6, "norms": 0.7}
    actual = combine_onto_zeros("layerwise", {**params, "layers": [1.0, 0.5]}, [vector])
    for name, factor in parts.items():
        np.testing.assert_allclose(actual[name], factor, rtol=1e-12, err_msg=name)
    with pytest.raises(UserError, match="`q` of merge method `layerwise` matches no parameter"):
        combine_onto_zeros("layerwise", {"q": 0.5}, draw_vectors(1))


def test_layerwise_has_factors_by_donor_and_layer() -> None:
    """The coefficients of AdaMerging and AdaLTM by task and layer; the rest is averaged."""
    names = [f"encoder.layers.{layer}.fc1.weight" for layer in range(2)]
    first, second = (
        {name: np.full(3, value + place) for place, name in enumerate([*names, "proj.weight"])}
        for value in (1.0, 10.0)
    )
    factors = [[0.1, 0.2], [0.3, 0.4]]
    params: dict[str, Any] = {"layers_by_donor": factors, "weights": [1, 3]}
    for normalize, divisor in ((False, 1.0), (True, 4.0)):
        actual = combine_onto_zeros(
            "layerwise", {**params, "normalize": normalize}, [first, second]
        )
        for layer, name in enumerate(names):
            expected = factors[0][layer] * first[name] + 3 * factors[1][layer] * second[name]
            np.testing.assert_allclose(actual[name], expected / divisor, rtol=1e-12)
        rest = (first["proj.weight"] + 3 * second["proj.weight"]) / divisor
        np.testing.assert_allclose(actual["proj.weight"], rest, rtol=1e-12)
    with pytest.raises(UserError, match=r"`layers_by_donor.1` .* must have 2 factors"):
        combine_onto_zeros("layerwise", {"layers_by_donor": [[1, 1], [1]]}, [first, second])
    with pytest.raises(UserError, match="number of donors must be 1"):
        combine_onto_zeros("layerwise", {"layers_by_donor": [[1, 1]]}, [first, second])


def test_fisher_has_the_floors_of_its_programs() -> None:
    source, name = np.random.default_rng(5), "encoder.layers.0.fc1.weight"
    vectors = [{name: model[name]} for model in draw_vectors(2)]
    information = [source.gamma(0.05, 1e-6, SHAPES[name]) for _ in vectors]
    statistics = [{f"fisher:{name}": torch.tensor(item)} for item in information]

    def combine(params: dict[str, Any]) -> Any:
        return combine_onto_zeros("fisher", params, vectors, statistics=statistics)[name]

    def average(shares: list[Any]) -> Any:
        return sum(s * v[name] for s, v in zip(shares, vectors, strict=True)) / sum(shares)

    floored = [np.maximum(item, 1e-8) for item in information]
    np.testing.assert_allclose(
        combine({"like": "wise_ft", "weights": [0.3, 0.7]}),
        average([0.3 * floored[0], 0.7 * floored[1]]),
        rtol=1e-9,
    )
    norms = [np.linalg.norm(item) + 1e-6 for item in information]
    added = [(item + 1e-6) / norm for item, norm in zip(information, norms, strict=True)]
    np.testing.assert_allclose(combine({"like": "mergelm"}), average(added), rtol=1e-9)


def test_fisher_at_alpha_one_does_not_depend_on_the_base() -> None:
    """The base cancels: the merge is MergeLM's, which has none, and WiSE-FT's with the base as a
    donor."""
    source = np.random.default_rng(6)
    models = [{"w": torch.tensor(source.standard_normal(9))} for _ in range(4)]
    statistics = [{"fisher:w": torch.tensor(source.gamma(0.5, 1.0, 9))} for _ in range(2)]
    results = [
        merge("fisher", {"like": "wise_ft"}, base, models[:2], 1.0, statistics=statistics)["w"]
        for base in (models[0], models[2], models[3])
    ]
    shares = [item["fisher:w"].clamp_min(1e-8) for item in statistics]
    expected = sum(s * m["w"] for s, m in zip(shares, models, strict=False)) / sum(shares)
    for result in results:
        torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


def test_values_by_donor_must_be_as_many_as_the_donors() -> None:
    with pytest.raises(SpecError, match="`weights` has 2, `density` has 3"):
        validate_params("ties", {"weights": [1, 2], "density": [0.1, 0.2, 0.3]})
    with pytest.raises(UserError, match="number of donors must be 2 "):
        validate_params("dare_ties", {"density": [0.1, 0.2]}, donors=3)
    with pytest.raises(SpecError, match="merge method `magmax`"):
        validate_params("ties", {"elect": "none", "aggregate": "max"})


@pytest.mark.parametrize("method", ["breadcrumbs", "della", "dare_linear", "dare_ties"])
def test_a_density_by_donor_is_that_donors_own(method: str) -> None:
    """With weights 1, 0, 0 only the first donor counts, and its density with it."""
    alone = {"weights": [1.0, 0.0, 0.0], "normalize": False}
    more = {"trim": 1.0} if method == "dare_ties" else {}
    each, both = (
        combine_onto_zeros(method, {**alone, **more, "density": density}, VECTORS)
        for density in ([0.5, 0.8, 1.0], 0.5)
    )
    if method == "dare_ties":  # the others vote as well
        assert any(not np.array_equal(each[name], both[name]) for name in SHAPES)
    else:
        assert_close(each, both)


def test_pcb_clips_a_ten_thousandth_at_either_end() -> None:
    """40,000 values: 4 at either end."""
    source = np.random.default_rng(4)
    vectors = [{"w": source.standard_t(3, (200, 200))} for _ in range(2)]
    assert_close(combine_onto_zeros("pcb", {}, vectors), references.pcb(vectors, 0.1), 1e-9)
