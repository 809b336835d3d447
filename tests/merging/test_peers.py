"""Compares merges with those of mergekit's own command.

tests/peers/make_merge_references.py writes the data.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from speechft_ray.merging import _drop
from speechft_ray.merging._drop import compute_gains
from speechft_ray.merging.algebra import merge
from speechft_ray.merging.param_reader import ParamGroup, ParamReader, ParamSlice

FOLDER = Path(__file__).parents[1] / "data" / "merging_peers"
MANIFEST: dict[str, Any] = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
StateDict = dict[str, torch.Tensor]

MERGEKIT = {"like": "mergekit"}
SPHERE = {"on": "weights"}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "linear_equal": ("linear", {}),
    "linear_unequal": ("linear", {"weights": [0.5, 0.3, 0.2]}),
    "task_arithmetic": ("task_arithmetic", {"weights": [0.4, 0.3, -0.2]}),
    "task_arithmetic_lambda": (
        "task_arithmetic",
        {"weights": [0.5, 0.3, 0.2], "normalize": True, "scale": 0.7},
    ),
    "ties_d02": ("ties", {**MERGEKIT, "density": 0.2}),
    "ties_d05": ("ties", {**MERGEKIT, "density": 0.5}),
    "ties_d05_lambda": ("ties", {**MERGEKIT, "density": 0.5, "scale": 0.4}),
    "ties_no_trim": ("ties", {**MERGEKIT, "density": 1.0}),
    "ties_d05_unequal": ("ties", {**MERGEKIT, "density": 0.5, "weights": [0.5, 0.3, 0.2]}),
    "ties_d05_sum": ("ties", {**MERGEKIT, "density": 0.5, "normalize": False}),
    "dare_linear_d1": ("dare_linear", {**MERGEKIT, "density": 1.0, "weights": [0.5, 0.3, 0.2]}),
    "dare_ties_d1": ("dare_ties", {**MERGEKIT, "density": 1.0}),
    "dare_ties_d1_unequal": ("dare_ties", {**MERGEKIT, "density": 1.0, "weights": [0.5, 0.3, 0.2]}),
    "della_linear_d1": (
        "della",
        {**MERGEKIT, "density": 1.0, "consensus": False, "weights": [0.5, 0.3, 0.2]},
    ),
    "della_d1": ("della", {**MERGEKIT, "density": 1.0}),
    "breadcrumbs": ("breadcrumbs", {"density": 0.5, "gamma": 0.1}),
    "breadcrumbs_unequal": (
        "breadcrumbs",
        {"density": 0.7, "gamma": 0.05, "weights": [0.5, 0.3, 0.2]},
    ),
    "breadcrumbs_ties": ("breadcrumbs", {"density": 0.5, "gamma": 0.1, "consensus": True}),
    "slerp_t03": ("slerp", {**SPHERE, "t": 0.3}),
    "slerp_t05_far": ("slerp", {**SPHERE, "t": 0.5}),
    "karcher_two": ("karcher", {**SPHERE, "steps": 100, "tolerance": 1e-7}),
    "karcher_three": ("karcher", {**SPHERE, "steps": 100, "tolerance": 1e-7}),
    "karcher_three_far": ("karcher", {**SPHERE, "steps": 100, "tolerance": 1e-7}),
    "model_stock_two": ("model_stock", {}),
    "model_stock_three": ("model_stock", {}),
    "sce": ("sce", {"density": 1.0}),
    "sce_topk03": ("sce", {"density": 0.3}),
}
RANDOM = {"dare_linear_lone_d05", "dare_linear_lone_d05_no_rescale", "della_linear_lone_d05"}
"""Cases whose masks come from the peer's random generator and cannot be drawn here. Only results
that follow from a mask are compared."""
MASKED = ("ties", "breadcrumbs", "sce_topk")
TOLERANCE = 2e-6
"""Rounding of float32 values of size 1 to 4; both sides add and divide in another order."""


def load(name: str) -> StateDict:
    state: StateDict = load_file(FOLDER / name)
    return state


def prefix_with(key: str) -> Callable[[str], str]:
    """Returns the function that names the tensor in a message."""
    return lambda text: f"{key}: {text}"


def test_the_data_is_what_the_manifest_says() -> None:
    named = {
        **MANIFEST["inputs"],
        **{f"{name}.safetensors": case["sha256"] for name, case in MANIFEST["cases"].items()},
    }
    hashes = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in FOLDER.glob("*.safetensors")
    }
    assert hashes == named
    assert set(MANIFEST["cases"]) == {*CASES, *RANDOM}


@pytest.mark.parametrize("name", CASES)
def test_merge_is_the_peers(name: str) -> None:
    case = MANIFEST["cases"][name]
    method, params = CASES[name]
    base, donors = load("base.safetensors"), [load(file) for file in case["inputs"]]
    if method == "slerp":  # the peer interpolates from the base itself
        donors.insert(0, base)
    merged, expected = merge(method, params, base, donors, 1.0), load(f"{name}.safetensors")
    assert set(merged) == set(expected)
    for key, tensor in expected.items():
        torch.testing.assert_close(
            merged[key], tensor, rtol=0, atol=TOLERANCE, msg=prefix_with(key)
        )
        if name.startswith(MASKED):
            assert torch.equal(merged[key] != base[key], tensor != base[key]), (
                f"{key} moves at other positions"
            )


def test_other_conventions_give_another_merge() -> None:
    """The comparison is sensitive: TIES with the original's conventions differs from the peer's."""
    expected, base = load("ties_d05.safetensors"), load("base.safetensors")
    merged = merge(
        "ties", {"density": 0.5}, base, [load(f"{name}.safetensors") for name in "abc"], 1.0
    )
    assert any(
        not torch.allclose(merged[key], expected[key], rtol=0, atol=TOLERANCE) for key in expected
    )


@pytest.mark.parametrize("name", ["dare_linear_lone_d05", "dare_linear_lone_d05_no_rescale"])
def test_drops_keep_about_the_density_and_the_rest_follows_from_the_mask(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given the mask of the peer's result, our rescale gives the peer's values."""
    base, donor, expected = (
        load("base.safetensors"),
        load("a.safetensors"),
        load(f"{name}.safetensors"),
    )
    masks = {key: expected[key] != base[key] for key in base}
    total = sum(mask.numel() for mask in masks.values())
    kept = sum(int(mask.sum()) for mask in masks.values())
    assert (
        abs(kept / total - 0.5) < 4 * (0.25 / total) ** 0.5
    )  # four standard deviations of a fair coin
    monkeypatch.setattr(
        _drop,
        "_draw_masks",
        lambda part, density, seed: [masks[part.name].reshape(part.vectors[0].shape)],
    )
    params = {**MERGEKIT, "density": 0.5, **({"rescale": "none"} if "no_rescale" in name else {})}
    merged = merge("dare_linear", params, base, [donor], 1.0)
    for key, tensor in expected.items():
        torch.testing.assert_close(merged[key], tensor, rtol=0, atol=TOLERANCE)


def test_gains_are_one_over_the_density_on_average() -> None:
    """For large tensors, the peer's L1 rescale and the paper's 1 / density agree."""
    vector = torch.randn(200_000, generator=torch.Generator().manual_seed(5))
    one = ParamSlice(name="w", base=vector, vectors=(vector,))
    gains = compute_gains(
        ParamReader(groups=(ParamGroup(name="w", keys=("w",)),), donors=1, read=lambda part: one),
        0.3,
        "l1",
        seed=0,
    )
    assert gains["w"][0] == pytest.approx(1 / 0.3, rel=0.02)


def test_della_keeps_large_changes_more_often_and_restores_the_norm() -> None:
    base, donor, expected = (
        load("wide_base.safetensors"),
        load("wide_a.safetensors"),
        load("della_linear_lone_d05.safetensors"),
    )
    merged = merge(
        "della",
        {**MERGEKIT, "consensus": False, "density": 0.5, "epsilon": 0.2},
        base,
        [donor],
        1.0,
    )
    for result in (expected, merged):
        large = small = 0
        for key, start in base.items():
            step = (donor[key] - start).double()
            moved = (result[key] - start).double()
            # A step is a difference of values near 1, so its rounding shows in sums of a few small
            # steps.
            assert float(moved.abs().sum()) == pytest.approx(float(step.abs().sum()), rel=2e-4), key
            if step.dim() > 1:
                rows = step.abs().reshape(len(step), -1)
                kept = (moved != 0).reshape(rows.shape)
                upper = rows > rows.median(dim=1, keepdim=True).values
                large, small = large + int(kept[upper].sum()), small + int(kept[~upper].sum())
        assert large > 1.2 * small


def test_the_manifest_says_where_the_data_comes_from() -> None:
    assert MANIFEST["versions"]["mergekit"] == "0.1.5"
    assert all(
        case["command"].startswith("PYTHONHASHSEED=0 mergekit-pytorch ")
        for case in MANIFEST["cases"].values()
    )
    assert "mergekit" not in sys.modules
