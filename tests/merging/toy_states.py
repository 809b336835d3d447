"""Small encoder states, donors near them, and their statistics."""

from __future__ import annotations

import torch

from speechft_ray.merging.base import METHODS

StateDict = dict[str, torch.Tensor]


def make_state(
    seed: int, dtype: torch.dtype = torch.float32, near: StateDict | None = None
) -> StateDict:
    """Returns a small encoder's state: layers, a weight-normalised convolution, a single value, an
    integer buffer, a tied tensor.

    ``near``: a state to which small random steps are added.
    """
    source = torch.Generator().manual_seed(seed)

    def draw(key: str, *shape: int) -> torch.Tensor:
        fresh = torch.randn(*shape, generator=source)
        return (fresh if near is None else near[key].float() + 0.05 * fresh).to(dtype)

    tied = draw("tied.one", 4, 3)
    return {
        "feature_extractor.conv_layers.0.weight": draw(
            "feature_extractor.conv_layers.0.weight", 6, 1, 5
        ),
        "encoder.layers.0.weight": draw("encoder.layers.0.weight", 8, 6),
        "encoder.layers.0.bias": draw("encoder.layers.0.bias", 8),
        "encoder.layers.1.weight": draw("encoder.layers.1.weight", 6, 8),
        "encoder.pos_conv.0.weight_g": draw("encoder.pos_conv.0.weight_g", 1, 1, 3),
        "encoder.pos_conv.0.weight_v": draw("encoder.pos_conv.0.weight_v", 6, 2, 3),
        "gain": draw("gain", 1),
        "steps": torch.tensor([seed, 2 * seed]),
        "tied.one": tied,
        "tied.two": tied,
        "head.weight": draw("head.weight", 3, 3),
    }


BASE = make_state(0)
DONORS = [make_state(seed, near=BASE) for seed in (1, 2, 3)]


def make_statistics(method: str, base: StateDict, seed: int) -> StateDict:
    """Returns statistics of the kind that a method needs, for the parameters of layers."""
    kind, source = METHODS.get(method).needs, torch.Generator().manual_seed(seed)
    layers = {key: tensor for key, tensor in base.items() if "layers.0" in key and kind}
    if kind in ("gram", "layer_gram"):
        inputs = {
            key: torch.randn(20, tensor.shape[1], generator=source)
            for key, tensor in layers.items()
            if tensor.dim() == 2
        }
        return {f"{kind}:{key}": rows.T @ rows / 20 for key, rows in inputs.items()}
    return {
        f"{kind}:{key}": torch.rand(tensor.shape, generator=source)
        for key, tensor in layers.items()
    }


def copy_state(state: StateDict) -> StateDict:
    """Returns a state with copies of all tensors, no longer tied."""
    return {key: tensor.clone() for key, tensor in state.items()}


def to_float32(state: StateDict) -> StateDict:
    """Returns a state in float32, tied as before."""
    wide = {
        key: tensor.float() if tensor.is_floating_point() else tensor
        for key, tensor in state.items()
    }
    return {**wide, "tied.two": wide["tied.one"]}


def assert_same(actual: StateDict, expected: StateDict) -> None:
    """Asserts the same keys in the same order, and the same bits."""
    assert list(actual) == list(expected)
    for key, tensor in actual.items():
        assert tensor.dtype == expected[key].dtype, key
        assert torch.equal(tensor, expected[key]), key
        if tensor.is_floating_point():
            assert torch.equal(tensor.signbit(), expected[key].signbit()), key
