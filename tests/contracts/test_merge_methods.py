"""The contract of every registered merge method.

A new method is tested without an edit here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from speechft_ray.core.errors import SpecError, UserError
from speechft_ray.merging.algebra import combine_all, make_statistics_lookup, merge
from speechft_ray.merging.base import METHODS, MergeParams, validate_params
from speechft_ray.merging.param_reader import ParamGroup, ParamReader, ParamSlice
from speechft_ray.merging.resident import ResidentMerger
from tests.merging.toy_states import (
    BASE,
    DONORS,
    StateDict,
    assert_same,
    copy_state,
    make_state,
    make_statistics,
    to_float32,
)

EXAMPLES: Mapping[str, Mapping[str, Any]] = {"pcb": {"ratio": 0.8}, "wudi": {"steps": 20}}
"""Parameters of a method that differ from its defaults here: the toy states are so small that PCB
would change few of their tensors, and WUDI is slow."""

CHANGES_A_LONE_DONOR = {"arcee_fusion", "iso_c", "iso_cts", "pcb"}
"""Methods that have no setting at which a lone donor comes back."""


def run_merge(
    method: str,
    base: StateDict,
    donors: list[StateDict],
    alpha: float = 0.5,
    protected: tuple[str, ...] = (),
    params: Mapping[str, Any] | None = None,
) -> StateDict:
    """Merges as many of the donors as the method takes, with statistics where it needs them."""
    params = {**EXAMPLES.get(method, {}), **(params or {})}
    fewest, most = METHODS.get(method).donors(validate_params(method, params))
    chosen = [
        donors[index % len(donors)]
        for index in range(max(fewest, min(len(donors), most or len(donors))))
    ]
    statistics = [make_statistics(method, base, seed) for seed in range(len(chosen))]
    return merge(method, params, base, chosen, alpha, protected, statistics)


@pytest.fixture(params=METHODS.names())
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_alpha_zero_is_the_base(method: str) -> None:
    base = {**BASE, "negative.zero": torch.tensor([-0.0])}
    donors = [{**donor, "negative.zero": torch.tensor([1.0])} for donor in DONORS]
    assert_same(run_merge(method, base, donors, alpha=0.0), base)


def test_donors_equal_to_the_base_change_nothing(method: str) -> None:
    for alpha in (0.25, 1.0):
        assert_same(run_merge(method, BASE, [copy_state(BASE), copy_state(BASE)], alpha), BASE)


def test_alpha_scales_the_step(method: str) -> None:
    """Every method ends with theta0 + alpha * (merged - theta0)."""
    whole, part = run_merge(method, BASE, DONORS, 1.0), run_merge(method, BASE, DONORS, 0.25)
    moved = [key for key in BASE if not torch.equal(whole[key], BASE[key])]
    assert "encoder.layers.0.weight" in moved
    for key in moved:
        torch.testing.assert_close(
            part[key], BASE[key] + 0.25 * (whole[key] - BASE[key]), rtol=0, atol=1e-6
        )


def test_donor_order_does_not_matter(method: str) -> None:
    """With equal weights, up to rounding; where masks depend on the donor's position, at the
    setting without masks."""
    kind = METHODS.get(method)
    if kind.needs:
        return  # statistics belong to donors; tests/merging/test_references.py reverses both
    params = {} if kind.symmetric else kind.neutral
    donors = DONORS[: kind.donors(validate_params(method, {}))[1]]
    if kind.symmetric or kind.neutral is not None:
        forward, backward = (
            run_merge(method, BASE, order, params=params) for order in (donors, donors[::-1])
        )
        for key, tensor in forward.items():
            torch.testing.assert_close(tensor, backward[key], rtol=0, atol=2e-6)
    if not kind.symmetric:
        assert not torch.equal(
            run_merge(method, BASE, donors)["encoder.layers.0.weight"],
            run_merge(method, BASE, donors[::-1])["encoder.layers.0.weight"],
        )


def test_inputs_are_not_changed_and_not_shared(method: str) -> None:
    base, donors = copy_state(BASE), [copy_state(donor) for donor in DONORS[:1]]
    for alpha in (0.0, 0.5, 1.0):
        result = run_merge(method, base, donors, alpha)
        for tensor in result.values():
            tensor.fill_(7)
        assert_same(base, copy_state(BASE))
        assert_same(donors[0], copy_state(DONORS[0]))


def test_combine_changes_no_task_vector(method: str) -> None:
    keys = (
        "encoder.layers.0.bias",
        "encoder.layers.0.weight",
        "feature_extractor.conv_layers.0.weight",
    )
    vectors = {key: tuple(donor[key] - BASE[key] for donor in DONORS) for key in keys}
    copies = {key: tuple(vector.clone() for vector in each) for key, each in vectors.items()}
    count = METHODS.get(method).donors(validate_params(method, {}))[1] or 3
    groups = tuple(ParamGroup(name=key, keys=(key,)) for key in keys)
    statistics = [make_statistics(method, BASE, seed) for seed in range(count)]
    look_up = make_statistics_lookup(method, statistics, count)
    slices = {
        key: ParamSlice(
            name=key, base=BASE[key], vectors=vectors[key][:count], statistics=look_up(key)
        )
        for key in keys
    }
    reader = ParamReader(groups=groups, donors=count, read=lambda group: slices[group.name])
    for group, combined, _ in combine_all(method, validate_params(method, {}), reader):
        assert combined.shape == BASE[group.name].shape
        for vector, before in zip(vectors[group.name], copies[group.name], strict=True):
            assert torch.equal(vector, before)


def test_tensors_of_any_layout_are_merged(method: str) -> None:
    """One number, no number, and a matrix that was transposed: as any file may have them."""
    odd = {"scale": torch.tensor(2.0), "none": torch.empty(0, 4), "turned": torch.randn(6, 4).T}
    base = {**BASE, **odd}
    donors = [
        {
            **donor,
            "scale": torch.tensor(3.0),
            "none": torch.empty(0, 4),
            "turned": odd["turned"] + 1,
        }
        for donor in DONORS
    ]
    merged = run_merge(method, base, donors)
    assert merged["scale"].shape == () and bool(merged["scale"].isfinite())
    assert merged["none"].shape == (0, 4) and merged["turned"].shape == (4, 6)
    count = METHODS.get(method).donors(validate_params(method, {}))[1] or 2
    statistics = [make_statistics(method, base, seed) for seed in range(count)]
    params = EXAMPLES.get(method, {})
    resident = ResidentMerger(base, donors[:count], (), statistics)
    whole = merge(method, params, base, donors[:count], 0.5, (), statistics)
    assert_same(resident.merge(method, params, 0.5), whole)


def test_integer_buffers_are_the_bases(method: str) -> None:
    for alpha in (0.5, 1.0):
        assert run_merge(method, BASE, DONORS, alpha)["steps"].tolist() == BASE["steps"].tolist()


def test_shared_tensors_stay_shared(method: str) -> None:
    for alpha in (0.0, 0.5):
        result = run_merge(
            method, BASE, [copy_state(donor) for donor in DONORS], alpha
        )  # the donors' copies are no longer tied
        assert result["tied.one"].data_ptr() == result["tied.two"].data_ptr()
        assert torch.equal(result["tied.one"], BASE["tied.one"]) == (alpha == 0)


def test_protected_parameters_keep_the_base(method: str) -> None:
    result = run_merge(method, BASE, DONORS, 1.0, ("head.", "tied.two"))
    assert torch.equal(result["head.weight"], BASE["head.weight"])
    assert torch.equal(result["tied.one"], BASE["tied.one"])  # one of its names is protected
    assert not torch.equal(result["encoder.layers.0.weight"], BASE["encoder.layers.0.weight"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_merged_in_float32(method: str, dtype: torch.dtype) -> None:
    base = make_state(0, dtype)
    donors = [make_state(seed, dtype, near=base) for seed in (1, 2, 3)]
    result = run_merge(method, base, donors, 0.25)
    wide = run_merge(method, to_float32(base), [to_float32(donor) for donor in donors], 0.25)
    for key, tensor in result.items():
        assert tensor.dtype == base[key].dtype
        assert torch.equal(tensor, wide[key].to(tensor.dtype)), key


def test_other_number_types_of_donors_are_taken(method: str) -> None:
    donors = [make_state(seed, torch.float16, near=BASE) for seed in (1, 2)]
    wide = [{key: tensor.to(BASE[key].dtype) for key, tensor in donor.items()} for donor in donors]
    assert_same(run_merge(method, BASE, donors), run_merge(method, BASE, wide))


def test_parameters_that_learn_give_plain_tensors(method: str) -> None:
    donors = [
        {key: torch.nn.Parameter(t) if t.is_floating_point() else t for key, t in donor.items()}
        for donor in DONORS[:1]
    ]
    for tensor in run_merge(method, BASE, donors, 1.0).values():
        assert type(tensor) is torch.Tensor and not tensor.requires_grad


def test_mismatched_donors_are_refused(method: str) -> None:
    incomplete = {key: tensor for key, tensor in DONORS[0].items() if key != "gain"}
    with pytest.raises(UserError, match="lacks 1 of 11 parameters: gain"):
        run_merge(method, BASE, [incomplete, DONORS[1]])
    with pytest.raises(UserError, match="1 differ in shape or kind: gain"):
        run_merge(method, BASE, [{**DONORS[0], "gain": torch.zeros(2)}, DONORS[1]])


def test_broken_donors_are_refused(method: str) -> None:
    donors = DONORS[: METHODS.get(method).donors(validate_params(method, {}))[1]]
    broken = {**donors[-1], "gain": torch.tensor([float("nan")])}
    message = f"donor {len(donors)} has NaN or infinite values in 1 parameters: gain"
    with pytest.raises(UserError, match=message):
        run_merge(method, BASE, [*donors[:-1], broken])


def test_a_repeated_merge_has_the_same_bits(method: str) -> None:
    assert_same(run_merge(method, BASE, DONORS), run_merge(method, BASE, DONORS))


def test_a_lone_donor_is_reached_bit_for_bit_at_the_neutral_setting(method: str) -> None:
    neutral = METHODS.get(method).neutral
    if neutral is None:  # it cannot hand a lone donor back
        fewest, _ = METHODS.get(method).donors(validate_params(method, {}))
        assert fewest > 1 or method in CHANGES_A_LONE_DONOR
        return
    base, donor = make_state(0), make_state(9)  # far apart: base + (donor - base) would round
    base["zero"], donor["zero"] = (
        torch.tensor([1.0]),
        torch.tensor([-0.0]),
    )  # an interpolation would lose the sign
    result = run_merge(method, base, [donor], 1.0, params=neutral)
    assert_same(result, {**donor, "steps": base["steps"]})
    assert any(not torch.equal(base[key] + (donor[key] - base[key]), donor[key]) for key in base)


def test_scale_multiplies_the_step(method: str) -> None:
    plain, half = (
        run_merge(method, BASE, DONORS, 1.0, params={"scale": scale}) for scale in (1.0, 0.5)
    )
    for key, tensor in BASE.items():
        torch.testing.assert_close(
            half[key], (tensor + 0.5 * (plain[key] - tensor)).to(tensor.dtype), rtol=0, atol=1e-6
        )


def test_float64_on_request_is_the_same_merge_rounded_less(method: str) -> None:
    wide = {
        key: tensor.double() if tensor.is_floating_point() else tensor
        for key, tensor in BASE.items()
    }
    wide["tied.two"] = wide["tied.one"]
    donors = [
        {key: tensor.to(wide[key].dtype) for key, tensor in donor.items()} for donor in DONORS
    ]
    exact = run_merge(method, wide, donors)
    asked, plain = (
        run_merge(method, BASE, DONORS, params={"precision": precision})
        for precision in ("float64", "float32")
    )
    for key, tensor in exact.items():
        assert asked[key].dtype == BASE[key].dtype
        assert torch.equal(asked[key], tensor.to(asked[key].dtype)), key
        torch.testing.assert_close(plain[key], asked[key], rtol=0, atol=5e-6)


def test_the_kernel_of_a_weight_normalised_convolution_is_merged_on_request(method: str) -> None:
    kernel = {"pos_conv": "kernel"}
    g, v = "encoder.pos_conv.0.weight_g", "encoder.pos_conv.0.weight_v"
    assert_same(run_merge(method, BASE, [copy_state(BASE)] * 2, 1.0, params=kernel), BASE)
    assert_same(run_merge(method, BASE, DONORS, 0.0, params=kernel), BASE)
    result = run_merge(method, BASE, DONORS, 0.5, params=kernel)
    torch.testing.assert_close(
        result[g], torch.linalg.vector_norm(result[v], dim=(0, 1), keepdim=True), rtol=1e-6, atol=0
    )
    assert not torch.equal(result[v], run_merge(method, BASE, DONORS, 0.5)[v])
    neutral = METHODS.get(method).neutral
    if neutral is not None:
        whole = run_merge(method, BASE, [DONORS[0]], 1.0, params={**neutral, **kernel})
        assert torch.equal(whole[g], DONORS[0][g]) and torch.equal(whole[v], DONORS[0][v])
    part = run_merge(method, BASE, DONORS, 0.5, (v,), params=kernel)  # a lone factor has no kernel
    assert torch.equal(part[v], BASE[v]) and torch.equal(
        part[g], run_merge(method, BASE, DONORS, 0.5, (v,))[g]
    )


def test_unknown_parameters_are_reported_with_the_nearest_name(method: str) -> None:
    with pytest.raises(SpecError, match=r"unknown field `precisoin`. Did you mean `precision`\?"):
        validate_params(method, {"precisoin": "float64"})


def test_the_version_is_positive(method: str) -> None:
    version = METHODS.get(method).version
    assert isinstance(version, int) and version >= 1


def test_every_parameter_is_documented_with_its_default(method: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "merging.md").read_text(encoding="utf-8")
    section = page.split(f"### {method}\n", 1)[1].split("\n### ", 1)[0]
    own = set(METHODS.get(method).params.model_fields) - set(MergeParams.model_fields)
    assert {name for name in own if f"`{name}`" not in section} == set()
    (row,) = (line for line in page.splitlines() if line.startswith(f"| [{method}](#{method}) |"))
    assert {name.strip("` ") for name in row.split("|")[3].split(",")} == (own or {"-"})
    assert "arXiv" in section or "doi" in section
