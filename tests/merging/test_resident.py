"""A resident merger gives the bits of ``algebra.merge``, whatever it merged before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from speechft_ray.core.errors import UserError
from speechft_ray.merging import _trim
from speechft_ray.merging._selection import (
    Passes,
    RankedMagnitude,
    Sample,
    select_kth_smallest,
)
from speechft_ray.merging.algebra import merge
from speechft_ray.merging.base import METHODS
from speechft_ray.merging.param_reader import ParamSlice
from speechft_ray.merging.resident import CACHE_SIZE, ResidentMerger
from tests.merging.toy_states import (
    BASE,
    DONORS,
    StateDict,
    assert_same,
    copy_state,
    make_statistics,
)

Rank = Callable[[int, int], int]

MORE: dict[str, list[dict[str, Any]]] = {
    "linear": [{"weights": [0.2, 0.5]}, {"precision": "float64"}],
    "ties": [{"like": "mergekit"}, {"density": 0.5, "scope": "tensor"}, {"pos_conv": "kernel"}],
    "dare_ties": [{"like": "mergekit", "density": 0.5}],
}


def select_donors(method: str) -> list[StateDict]:
    return DONORS[: METHODS.get(method).donors(METHODS.get(method).params())[1] or 2]


@pytest.mark.parametrize("method", METHODS.names())
def test_every_method_gives_the_bits_of_a_merge_from_scratch(method: str) -> None:
    donors = select_donors(method)
    statistics = [make_statistics(method, BASE, seed) for seed in range(len(donors))]
    resident = ResidentMerger(BASE, donors, ("head.",), statistics)
    for params in ({}, *MORE.get(method, []), {"scale": 0.4}):
        for alpha in (0.3, 1.0, 0.0, 0.7):
            result = resident.merge(method, params, alpha)
            assert_same(result, merge(method, params, BASE, donors, alpha, ("head.",), statistics))


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_the_way_to_a_lone_donor_ends_at_it(method: str) -> None:
    resident = ResidentMerger(BASE, DONORS[:1])
    for alpha in (1.0, 0.4, 1.0):
        params = {"density": 1.0} if method == "ties" else {}
        assert_same(
            resident.merge(method, params, alpha), merge(method, params, BASE, DONORS[:1], alpha)
        )


def test_parameters_that_come_again_after_many_others() -> None:
    resident = ResidentMerger(BASE, DONORS)
    for weight in [*range(1, CACHE_SIZE + 3), 1]:
        params = {"weights": [1.0, 2.0, float(weight)]}
        assert_same(
            resident.merge("linear", params, 0.5), merge("linear", params, BASE, DONORS, 0.5)
        )


def test_one_output_buffer_and_untouched_inputs() -> None:
    base, donors = copy_state(BASE), [copy_state(donor) for donor in DONORS]
    resident = ResidentMerger(base, donors)
    first = {key: tensor.data_ptr() for key, tensor in resident.merge("ties", {}, 0.5).items()}
    again = resident.merge("linear", {}, 1.0)
    assert {key: tensor.data_ptr() for key, tensor in again.items()} == first
    for key, tensor in again.items():
        if not torch.equal(tensor, BASE[key]):
            tensor.fill_(7)
    assert_same(resident.merge("linear", {}, 0.5), merge("linear", {}, BASE, DONORS, 0.5))
    assert_same(base, BASE)
    for donor, before in zip(donors, DONORS, strict=True):
        assert_same(donor, before)


def test_a_scan_combines_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    ties = METHODS.get("ties")

    def count_calls(params: Any, precomputed: Any, part: ParamSlice) -> torch.Tensor:
        calls.append(part.name)
        return ties.combine(params, precomputed, part)

    monkeypatch.setitem(METHODS._parts, "ties", replace(ties, combine=count_calls))
    resident = ResidentMerger(BASE, DONORS)
    for alpha in (0.1, 0.5, 0.9):
        for scale in (1.0, 0.5):
            resident.merge("ties", {"scale": scale}, alpha)
    assert sorted(calls) == sorted(set(calls)) and calls


def test_cuts_are_computed_once_per_density(monkeypatch: pytest.MonkeyPatch) -> None:
    searches: list[int] = []

    def count_searches(
        passes: Passes, donors: int, rank: Rank, sample: Sample | None
    ) -> list[RankedMagnitude]:
        searches.append(donors)
        return select_kth_smallest(passes, donors, rank, sample)

    monkeypatch.setattr(_trim, "select_kth_smallest", count_searches)
    resident = ResidentMerger(BASE, DONORS)
    for weights in ([1.0, 1.0, 1.0], [3.0, 2.0, 1.0]):
        for elect in ("mass", "count"):
            resident.merge("ties", {"weights": weights, "elect": elect}, 0.5)
    assert len(searches) == 1
    resident.merge("ties", {"density": 0.3}, 0.5)
    assert len(searches) == 2


def test_bad_donors_and_overflow_are_refused() -> None:
    with pytest.raises(UserError, match="donor 2 does not fit the base"):
        ResidentMerger(
            BASE, [DONORS[0], {key: tensor for key, tensor in DONORS[1].items() if key != "gain"}]
        )
    broken = ResidentMerger(BASE, [DONORS[0], {**DONORS[1], "gain": torch.tensor([float("nan")])}])
    with pytest.raises(UserError, match="donor 2 has NaN or infinite values"):
        broken.merge("linear", {}, 0.5)
    base = {"weight": torch.tensor([60000.0], dtype=torch.float16)}
    resident = ResidentMerger(base, [{"weight": torch.tensor([65000.0], dtype=torch.float16)}])
    assert float(resident.merge("linear", {}, 1.0)["weight"]) == 64992.0
    with pytest.raises(UserError, match="the merged model has NaN or infinite values"):
        resident.merge("linear", {"scale": 50.0}, 1.0)
