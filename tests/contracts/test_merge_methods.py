"""What every registered merge method promises. A new method is run through all of it without an edit here."""

from __future__ import annotations

import pytest
import torch

from speechft_ray.core.errors import UserError
from speechft_ray.merging.algebra import combine_all, merge
from speechft_ray.merging.base import METHODS, check
from speechft_ray.merging.source import One, Part, Source

State = dict[str, torch.Tensor]


def model(seed: int, dtype: torch.dtype = torch.float32, near: State | None = None) -> State:
    """A small encoder's state: matrices, a one-element tensor, an integer buffer and two names of one tensor."""
    source = torch.Generator().manual_seed(seed)

    def draw(key: str, *shape: int) -> torch.Tensor:
        fresh = torch.randn(*shape, generator=source)
        return (fresh if near is None else near[key].float() + 0.05 * fresh).to(dtype)

    tied = draw("tied.one", 4, 3)
    return {
        "conv.weight": draw("conv.weight", 6, 1, 5),
        "layer.weight": draw("layer.weight", 8, 6),
        "layer.bias": draw("layer.bias", 8),
        "gain": draw("gain", 1),
        "steps": torch.tensor([seed, 2 * seed]),
        "tied.one": tied,
        "tied.two": tied,
        "head.weight": draw("head.weight", 3, 3),
    }


BASE = model(0)
DONORS = [model(seed, near=BASE) for seed in (1, 2, 3)]


def merged(method: str, base: State, donors: list[State], alpha: float = 0.5, protected: tuple[str, ...] = ()) -> State:
    return merge(method, {}, base, donors, alpha, protected)


def copied(state: State) -> State:
    return {key: tensor.clone() for key, tensor in state.items()}


def in_float32(state: State) -> State:
    wide = {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    return {**wide, "tied.two": wide["tied.one"]}


def assert_same(one: State, other: State) -> None:
    """The same keys in the same order, and the same bits."""
    assert list(one) == list(other)
    for key, tensor in one.items():
        assert tensor.dtype == other[key].dtype, key
        assert torch.equal(tensor, other[key]), key
        if tensor.is_floating_point():
            assert torch.equal(tensor.signbit(), other[key].signbit()), key


@pytest.fixture(params=METHODS.names())
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_alpha_zero_is_the_base(method: str) -> None:
    base = {**BASE, "negative.zero": torch.tensor([-0.0])}
    donors = [{**donor, "negative.zero": torch.tensor([1.0])} for donor in DONORS]
    assert_same(merged(method, base, donors, alpha=0.0), base)


def test_donors_equal_to_the_base_change_nothing(method: str) -> None:
    for alpha in (0.25, 1.0):
        assert_same(merged(method, BASE, [copied(BASE), copied(BASE)], alpha), BASE)


def test_alpha_scales_the_step(method: str) -> None:
    """Every method ends with theta0 + alpha * (merged - theta0)."""
    whole, part = merged(method, BASE, DONORS, 1.0), merged(method, BASE, DONORS, 0.25)
    moved = [key for key in BASE if not torch.equal(whole[key], BASE[key])]
    assert "layer.weight" in moved
    for key in moved:
        torch.testing.assert_close(part[key], BASE[key] + 0.25 * (whole[key] - BASE[key]), rtol=0, atol=1e-6)


def test_donor_order_does_not_matter(method: str) -> None:
    """With equal weights, up to rounding."""
    forward, backward = merged(method, BASE, DONORS), merged(method, BASE, DONORS[::-1])
    for key, tensor in forward.items():
        torch.testing.assert_close(tensor, backward[key], rtol=0, atol=1e-6)


def test_inputs_are_not_changed_and_not_shared(method: str) -> None:
    base, donors = copied(BASE), [copied(donor) for donor in DONORS[:1]]
    for alpha in (0.0, 0.5, 1.0):
        result = merged(method, base, donors, alpha)
        for tensor in result.values():
            tensor.fill_(7)
        assert_same(base, copied(BASE))
        assert_same(donors[0], copied(DONORS[0]))


def test_combine_changes_no_task_vector(method: str) -> None:
    keys = ("conv.weight", "layer.bias", "layer.weight")
    vectors = {key: tuple(donor[key] - BASE[key] for donor in DONORS) for key in keys}
    kept = {key: tuple(vector.clone() for vector in each) for key, each in vectors.items()}
    parts = tuple(Part(name=key, keys=(key,)) for key in keys)
    source = Source(
        parts=parts, donors=3, read=lambda part: One(name=part.name, base=BASE[part.name], vectors=vectors[part.name])
    )
    for part, combined, _ in combine_all(method, check(method, {}), source):
        assert combined.shape == BASE[part.name].shape
        for vector, before in zip(vectors[part.name], kept[part.name], strict=True):
            assert torch.equal(vector, before)


def test_integer_buffers_are_the_bases(method: str) -> None:
    for alpha in (0.5, 1.0):
        assert merged(method, BASE, DONORS, alpha)["steps"].tolist() == BASE["steps"].tolist()


def test_shared_tensors_stay_shared(method: str) -> None:
    for alpha in (0.0, 0.5):
        result = merged(method, BASE, [copied(donor) for donor in DONORS], alpha)  # the donors' copies are no longer tied
        assert result["tied.one"].data_ptr() == result["tied.two"].data_ptr()
        assert torch.equal(result["tied.one"], BASE["tied.one"]) == (alpha == 0)


def test_protected_parameters_keep_the_base(method: str) -> None:
    result = merged(method, BASE, DONORS, 1.0, ("head.", "tied.two"))
    assert torch.equal(result["head.weight"], BASE["head.weight"])
    assert torch.equal(result["tied.one"], BASE["tied.one"])  # one of its names is protected
    assert not torch.equal(result["layer.weight"], BASE["layer.weight"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_merged_in_float32(method: str, dtype: torch.dtype) -> None:
    base = model(0, dtype)
    donors = [model(seed, dtype, near=base) for seed in (1, 2, 3)]
    result = merged(method, base, donors, 0.25)
    wide = merged(method, in_float32(base), [in_float32(donor) for donor in donors], 0.25)
    for key, tensor in result.items():
        assert tensor.dtype == base[key].dtype
        assert torch.equal(tensor, wide[key].to(tensor.dtype)), key


def test_other_number_types_of_donors_are_taken(method: str) -> None:
    donors = [model(seed, torch.float16, near=BASE) for seed in (1, 2)]
    wide = [{key: tensor.to(BASE[key].dtype) for key, tensor in donor.items()} for donor in donors]
    assert_same(merged(method, BASE, donors), merged(method, BASE, wide))


def test_parameters_that_learn_give_plain_tensors(method: str) -> None:
    donors = [{key: torch.nn.Parameter(t) if t.is_floating_point() else t for key, t in donor.items()} for donor in DONORS[:1]]
    for tensor in merged(method, BASE, donors, 1.0).values():
        assert type(tensor) is torch.Tensor and not tensor.requires_grad


def test_mismatched_donors_are_refused(method: str) -> None:
    lacking = {key: tensor for key, tensor in DONORS[0].items() if key != "gain"}
    with pytest.raises(UserError, match="lacks 1 of 8 parameters: gain"):
        merged(method, BASE, [lacking, DONORS[1]])
    with pytest.raises(UserError, match="1 differ in shape or kind: gain"):
        merged(method, BASE, [{**DONORS[0], "gain": torch.zeros(2)}, DONORS[1]])


def test_broken_donors_are_refused(method: str) -> None:
    with pytest.raises(UserError, match="donor 2 has NaN or infinite values in 1 parameters: gain"):
        merged(method, BASE, [DONORS[0], {**DONORS[1], "gain": torch.tensor([float("nan")])}])


def test_a_repeated_merge_has_the_same_bits(method: str) -> None:
    assert_same(merged(method, BASE, DONORS), merged(method, BASE, DONORS))


@pytest.mark.parametrize(("name", "params"), [("linear", {}), ("linear", {"weights": [0.3]}), ("ties", {"density": 1.0})])
def test_a_lone_untouched_donor_is_reached_bit_for_bit(name: str, params: dict[str, object]) -> None:
    base, donor = model(0), model(9)  # far apart: base + (donor - base) would round
    base["zero"], donor["zero"] = torch.tensor([1.0]), torch.tensor([-0.0])  # an interpolation would lose the sign
    result = merge(name, params, base, [donor], 1.0)
    assert_same(result, {**donor, "steps": base["steps"]})
    assert any(not torch.equal(base[key] + (donor[key] - base[key]), donor[key]) for key in base)
