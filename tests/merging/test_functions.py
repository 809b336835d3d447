"""Compares merges with the results of other programs' own functions: TIES' options, MergeLM's cut,
WiSE-FT's Fisher, and methods that mergekit does not have.

tests/data/merge_functions/manifest.json has the source, version and parameters of each.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from speechft_ray.merging.algebra import merge
from tests.merging.test_peers import prefix_with

DATA = Path(__file__).parents[1] / "data"
FOLDER, INPUTS = DATA / "merge_functions", DATA / "merging_recipes"
MANIFEST: dict[str, Any] = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
StateDict = dict[str, torch.Tensor]

CASES: dict[str, tuple[str, dict[str, Any], float]] = {
    "star": ("star", {}, 5e-6),
    "metagpt": ("metagpt", {}, 2e-6),
    "consensus": ("consensus", {}, 2e-6),
    "pcb_10": ("pcb", {}, 2e-6),
    "pcb_40": ("pcb", {"ratio": 0.4}, 2e-6),
    "ties_normfrac": ("ties", {"elect": "normfrac"}, 2e-6),
    "ties_normmass": ("ties", {"elect": "normmass", "density": 0.5}, 2e-6),
    "ties_none": ("ties", {"elect": "none", "density": 0.5}, 2e-6),
    "ties_dis_max": ("ties", {"aggregate": "max", "density": 0.5}, 2e-6),
    "ties_dis_sum": ("ties", {"normalize": False}, 2e-6),
    "knots": ("knots", {}, 5e-6),
    "mergelm_ties_70": ("ties", {"like": "mergelm", "density": 0.3}, 2e-6),
    "mergelm_ties_80": ("ties", {"like": "mergelm"}, 2e-6),
    "iso_cts_80": ("iso_cts", {}, 5e-6),
    "iso_cts_40": ("iso_cts", {"common": 0.4}, 5e-6),
    "magmax": ("magmax", {}, 2e-6),
}
"""Method, parameters, tolerance: rounding of float32, more where matrices are decomposed."""
MASKED = ("ties", "mergelm", "consensus", "pcb")
"""Cases in which the positions that move are compared exactly."""


def load(path: Path) -> StateDict:
    state: StateDict = load_file(path)
    return state


def load_inputs(names: str, keys: StateDict) -> list[StateDict]:
    """Returns the base and donors with those keys alone: some functions take matrices."""
    states = [load(INPUTS / f"{name}.safetensors") for name in ("base", *names)]
    return [{key: state[key] for key in keys} for state in states]


def test_the_data_is_what_the_manifest_says() -> None:
    files = {f"{name}.safetensors": case["sha256"] for name, case in MANIFEST["cases"].items()}
    for name, sha256 in {**files, **MANIFEST["fisher"]}.items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == sha256, name
    assert {*CASES, "wise_ft_fisher"} == set(MANIFEST["cases"])


@pytest.mark.parametrize("name", CASES)
def test_merge_is_the_functions(name: str) -> None:
    method, params, tolerance = CASES[name]
    expected = load(FOLDER / f"{name}.safetensors")
    base, *donors = load_inputs("abc", expected)
    merged = merge(method, params, base, donors, 1.0)
    for key, tensor in expected.items():
        torch.testing.assert_close(
            merged[key], tensor, rtol=0, atol=tolerance, msg=prefix_with(key)
        )
        if name.startswith(MASKED):
            assert torch.equal(merged[key] != base[key], tensor != base[key]), key


def test_the_cuts_of_ties_and_mergelm_differ() -> None:
    expected = load(FOLDER / "mergelm_ties_70.safetensors")
    base, *donors = load_inputs("abc", expected)
    merged = merge("ties", {"density": 0.3}, base, donors, 1.0)
    moved = sum(int((merged[key] != base[key]).sum()) for key in base)
    assert moved < sum(int((expected[key] != base[key]).sum()) for key in base)


def test_fisher_is_wise_fts_with_the_base_as_a_donor() -> None:
    expected = load(FOLDER / "wise_ft_fisher.safetensors")
    base, donor = load_inputs("a", expected)
    statistics = [
        {f"fisher:{key}": item for key, item in load(FOLDER / f"fisher_{n}.safetensors").items()}
        for n in range(2)
    ]
    params = {"like": "wise_ft", "weights": [0.7, 0.3]}
    merged = merge("fisher", params, base, [base, donor], 1.0, statistics=statistics)
    for key, tensor in expected.items():
        torch.testing.assert_close(merged[key], tensor, rtol=0, atol=2e-6, msg=prefix_with(key))
