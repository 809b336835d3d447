"""Compares merges with those of the original programs: ties-merging, WiSE-FT, task vectors."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from speechft_ray.merging._trim import compute_cuts, trim_vectors
from speechft_ray.merging.algebra import merge
from speechft_ray.merging.param_reader import ParamGroup, ParamReader, ParamSlice

FOLDER = Path(__file__).parents[1] / "data/merge_originals"
CASES: dict[str, tuple[str, dict[str, Any], float]] = {
    "ties_orig_topk20_mass_dismean_l1": ("ties", {}, 1.0),  # the defaults are the original's
    "ties_orig_topk20_mass_dismean_l04": ("ties", {"scale": 0.4}, 1.0),
    "ties_orig_topk50_mass_dismean_l1": ("ties", {"density": 0.5}, 1.0),
    "ties_orig_notrim_mass_dismean_l1": ("ties", {"density": 1.0}, 1.0),
    "ties_orig_edge_topk50": ("ties", {"density": 0.5}, 1.0),
    "ties_orig_edge_notrim": ("ties", {"density": 1.0}, 1.0),
    "tv_sum_l03": ("linear", {"normalize": False}, 0.3),
    "wiseft_alpha05": ("linear", {}, 0.5),
}


def load(name: str) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = load_file(FOLDER / f"{name}.safetensors")
    return state


def read_manifest() -> dict[str, dict[str, Any]]:
    cases = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))["cases"]
    return {case["name"]: case for case in cases}


def test_every_case_of_the_manifest_is_tested() -> None:
    assert set(read_manifest()) == {*CASES, "ties_orig_topk20_mask"}


@pytest.mark.parametrize("name", CASES)
def test_merge_is_the_originals(name: str) -> None:
    case = read_manifest()[name]
    assert hashlib.sha256((FOLDER / case["file"]).read_bytes()).hexdigest() == case["sha256"]
    method, params, alpha = CASES[name]
    base, *donors = (load(file) for file in case["inputs"])
    merged = merge(method, params, base, donors, alpha)
    expected = load(name)
    assert set(merged) == set(expected)
    for key, tensor in expected.items():
        torch.testing.assert_close(merged[key], tensor, rtol=0, atol=case["atol"])
        # Which positions moved shows the trim and the election exactly, however small the step.
        assert torch.equal(merged[key] != base[key], tensor != base[key]), key
        if method == "ties":
            assert torch.equal(merged[key], tensor), f"{key} is not the original's bit for bit"


def test_trim_masks_are_the_originals() -> None:
    case = read_manifest()["ties_orig_topk20_mask"]
    masks, base = load(case["name"]), load("inputs_base")
    vectors = {
        key: tuple(load(f"inputs_{donor}")[key] - base[key] for donor in "abc")
        for key in sorted(base)
    }
    groups = tuple(ParamGroup(name=key, keys=(key,)) for key in vectors)
    reader = ParamReader(
        groups=groups,
        donors=3,
        read=lambda part: ParamSlice(
            name=part.name, base=base[part.name], vectors=vectors[part.name]
        ),
    )
    cuts = compute_cuts(reader, density=0.2, scope="global", kept="threshold")
    for index, (donor, kept) in enumerate(zip("abc", case["kept"], strict=True)):
        mask = torch.cat([trim_vectors(one, cuts)[index].flatten() != 0 for one in reader])
        assert torch.equal(mask, masks[donor].bool())
        assert int(mask.sum()) == kept == int(0.2 * case["total"]) + 1
