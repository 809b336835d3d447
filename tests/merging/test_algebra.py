"""Alignment of base and donors, and the inputs that a merge refuses."""

from __future__ import annotations

import pytest
import torch

from speechft_ray.core.errors import SpecError, UserError
from speechft_ray.merging.algebra import merge
from speechft_ray.merging.base import METHODS, validate_params


def make_state(**values: list[float]) -> dict[str, torch.Tensor]:
    return {key: torch.tensor(numbers) for key, numbers in values.items()}


def error_of(
    base: dict[str, torch.Tensor], *donors: dict[str, torch.Tensor], alpha: float = 0.5
) -> str:
    with pytest.raises(UserError) as caught:
        merge("linear", {}, base, donors, alpha)
    return str(caught.value)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_missing_parameters_are_counted_and_five_are_named(alpha: float) -> None:
    base = make_state(**{f"p{index}": [1.0] for index in range(9)})
    sentence = error_of(base, base, make_state(p0=[1.0], p8=[1.0], extra=[0.0]), alpha=alpha)
    assert sentence.startswith(
        "donor 2 does not fit the base: it lacks 7 of 9 parameters: p1, p2, p3, p4, p5 and 2 more;"
    )
    assert "it has 1 that the base lacks: extra" in sentence


def test_shapes_and_kinds_must_agree() -> None:
    sentence = error_of(
        make_state(a=[1.0, 2.0], b=[1.0]),
        {"a": torch.zeros(3), "b": torch.zeros(1, dtype=torch.int64)},
    )
    assert (
        "2 differ in shape or kind: a float32 (3,) instead of float32 (2,), "
        "b int64 (1,) instead of float32 (1,)" in sentence
    )


def test_protected_parameters_need_not_agree() -> None:
    base = make_state(keep=[1.0, 2.0], move=[0.0])
    merged = merge(
        "linear", {}, base, [{**make_state(move=[4.0]), "keep.extra": torch.ones(7)}], 0.5, ["keep"]
    )
    assert {key: tensor.tolist() for key, tensor in merged.items()} == {
        "keep": [1.0, 2.0],
        "move": [2.0],
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_named(value: float) -> None:
    good, bad = make_state(a=[1.0], b=[1.0]), make_state(a=[1.0], b=[value])
    assert error_of(good, good, bad).startswith(
        "donor 2 has NaN or infinite values in 1 parameters: b;"
    )
    assert error_of(bad, good).startswith("the base has NaN or infinite values in 1 parameters: b;")
    assert error_of(bad, bad).startswith("the base has")  # inf - inf


def test_a_difference_beyond_the_number_type_is_refused() -> None:
    assert "differs from the base by more than torch.float32 can hold" in error_of(
        make_state(a=[-3e38]), make_state(a=[3e38])
    )


def test_a_result_beyond_the_number_type_is_refused() -> None:
    base, donor = {"a": torch.tensor([6e4]).half()}, {"a": torch.tensor([6.2e4]).half()}
    with pytest.raises(
        UserError, match="the merged model has NaN or infinite values in 1 parameters: a;"
    ):
        merge("linear", {"weights": [9], "normalize": False}, base, [donor], 1.0)


@pytest.mark.parametrize("alpha", [-0.1, 3.0, float("nan")])
def test_alpha_must_be_a_share(alpha: float) -> None:
    assert f"`alpha` must be within [0, 1], but is {alpha:g} instead" in error_of(
        make_state(a=[1.0]), make_state(a=[2.0]), alpha=alpha
    )


def test_tied_parameters_must_be_tied_in_donors() -> None:
    shared = torch.tensor([1.0])
    sentence = error_of({"a": shared, "b": shared}, make_state(a=[2.0], b=[3.0]))
    assert (
        "it holds two values for each of 1 tensors that the base shares between two names: a and b"
        in sentence
    )


def test_only_the_very_same_tensor_is_a_tie() -> None:
    """Views of one buffer (flattened parameters), equal copies and empty tensors are not tied."""
    buffer, empty = torch.zeros(4), torch.zeros(0)
    base = {
        "whole": buffer,
        "a": buffer[:2],
        "b": buffer[2:],
        "copy": torch.zeros(2),
        "none": empty,
        "void": empty,
    }
    donor = {
        key: torch.full_like(tensor, 2.0 * index)
        for index, (key, tensor) in enumerate(base.items())
    }
    merged = merge("linear", {}, base, [donor], 0.5)
    assert {key: tensor.tolist() for key, tensor in merged.items()} == {
        "whole": [0.0] * 4,
        "a": [1.0] * 2,
        "b": [2.0] * 2,
        "copy": [3.0] * 2,
        "none": [],
        "void": [],
    }
    assert len({id(tensor) for tensor in merged.values()}) == 6
    assert len({merged[key].data_ptr() for key in ("whole", "a", "b", "copy")}) == 4


def test_a_tied_tensor_counts_once_in_a_global_trim() -> None:
    shared = torch.zeros(4)
    base = {"a": shared, "b": shared, "c": torch.zeros(4)}
    values = torch.tensor([5.0, 6.0, 7.0, 8.0])
    donor = {"a": values, "b": values.clone(), "c": torch.tensor([1.0, 2.0, 3.0, 4.0])}
    merged = merge("ties", {"density": 0.5}, base, [donor], 1.0)
    # 8 positions, int(8 * 0.5) + 1 = 5 kept. Counted twice, a and b would fill int(12 * 0.5) + 1 =
    # 7 and drop a 5.
    assert merged["a"].tolist() == [5.0, 6.0, 7.0, 8.0]
    assert merged["c"].tolist() == [0.0, 0.0, 0.0, 4.0]


def test_nothing_to_merge_is_refused() -> None:
    with pytest.raises(UserError, match="nothing to merge"):
        merge("linear", {}, make_state(a=[1.0]), [make_state(a=[2.0])], 0.5, ["a"])


def test_a_small_base_value_does_not_round_the_donor_away() -> None:
    """base + (donor - base) is 0 here in float32, but the end point must be the donor."""
    assert merge("linear", {}, make_state(a=[1e9]), [make_state(a=[1.25])], 1.0)["a"].tolist() == [
        1.25
    ]


def test_float64_keeps_its_precision() -> None:
    base, donor = (
        {"a": torch.tensor([value], dtype=torch.float64)} for value in (1.0, 1.0 + 1e-12)
    )
    merged = merge("linear", {}, base, [donor], 0.5)["a"]
    assert merged.dtype == torch.float64
    assert merged.item() - 1.0 == pytest.approx(5e-13, rel=1e-3)


def test_unknown_method_and_parameters() -> None:
    assert {"linear", "ties"} <= set(METHODS.names())
    with pytest.raises(UserError, match=r"unknown merge method `linaer`. Did you mean `linear`\?"):
        validate_params("linaer", {})
    with pytest.raises(SpecError) as caught:
        validate_params("ties", {"density": 2, "elect": "vote"})
    assert [path for path, _ in caught.value.mistakes] == ["density", "elect"]


@pytest.mark.parametrize(
    ("method", "count", "expected"),
    [("slerp", 1, "2"), ("slerp", 3, "2"), ("model_stock", 1, "at least 2")],
)
def test_methods_that_need_more_or_fewer_donors(method: str, count: int, expected: str) -> None:
    with pytest.raises(
        UserError,
        match=f"number of donors must be {expected} for merge method `{method}`.*but is {count}",
    ):
        validate_params(method, {}, donors=count)


@pytest.mark.parametrize(("method", "kind"), [("fisher", "fisher"), ("regmean", "gram")])
def test_donors_without_the_statistics_that_a_method_needs(method: str, kind: str) -> None:
    base, donor = make_state(a=[1.0]), make_state(a=[2.0])
    statistic = {f"{kind}:a": torch.ones(1, 1)}
    other = {"other:a": torch.ones(1, 1)}
    cases: list[tuple[list[dict[str, torch.Tensor]] | None, str]] = [
        (None, "donor 1, donor 2"),
        ([statistic, {}], "donor 2"),
        ([statistic, other], "donor 2"),
    ]
    for statistics, donors in cases:
        with pytest.raises(
            UserError, match=rf"there are none of {donors}: fine-tune with `gather: \[{kind}\]`\."
        ):
            merge(method, {}, base, [donor, donor], 0.5, statistics=statistics)


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({}, "no parameter of the base belongs to a layer"),
        ({"layer_pattern": r"l(?P<layer>\d)", "layers": [1]}, "must have 2 factors"),
    ],
)
def test_layers_that_are_not_there(params: dict[str, object], sentence: str) -> None:
    base = make_state(l0=[1.0], l1=[1.0])
    with pytest.raises(UserError, match=sentence):
        merge("layerwise", params, base, [base], 0.5)


def test_the_kernel_is_merged_as_a_whole() -> None:
    """g v / |v| is interpolated from 2 (1, 0) to 2 (0, 1); its factors would give 2 (1, 1) /
    sqrt(2)."""
    base = {"conv.weight_g": torch.full((1, 1), 2.0), "conv.weight_v": torch.tensor([[3.0, 0.0]])}
    donor = {"conv.weight_g": torch.full((1, 1), 2.0), "conv.weight_v": torch.tensor([[0.0, 3.0]])}
    plain = merge("linear", {}, base, [donor], 0.5)
    assert plain["conv.weight_v"].tolist() == [[1.5, 1.5]] and plain["conv.weight_g"].item() == 2.0
    whole = merge("linear", {"pos_conv": "kernel"}, base, [donor], 0.5)
    assert whole["conv.weight_v"].tolist() == [[1.0, 1.0]]
    assert whole["conv.weight_g"].item() == pytest.approx(2**0.5)


def test_a_kernel_that_cancels_keeps_the_direction_of_the_base() -> None:
    base = {"conv.weight_g": torch.full((1, 1), 2.0), "conv.weight_v": torch.tensor([[3.0, 0.0]])}
    donor = {"conv.weight_g": torch.full((1, 1), 2.0), "conv.weight_v": torch.tensor([[-3.0, 0.0]])}
    whole = merge("linear", {"pos_conv": "kernel"}, base, [donor], 0.5)
    assert whole["conv.weight_g"].item() == 0.0 and whole["conv.weight_v"].tolist() == [[3.0, 0.0]]


def test_both_ways_of_naming_the_factors_are_known() -> None:
    for g, v in (
        ("weight_g", "weight_v"),
        ("parametrizations.weight.original0", "parametrizations.weight.original1"),
    ):
        base = {f"c.{g}": torch.ones(2, 1), f"c.{v}": torch.eye(2)}
        donor = {f"c.{g}": torch.ones(2, 1), f"c.{v}": torch.eye(2).flip(0)}
        whole = merge("linear", {"pos_conv": "kernel"}, base, [donor], 0.5)
        torch.testing.assert_close(whole[f"c.{g}"], torch.full((2, 1), 0.5**0.5))
