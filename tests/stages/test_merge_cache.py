"""Merges of the same donors read their files once, within a memory limit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from speechft_ray.core.errors import UserError
from speechft_ray.merging.algebra import merge
from speechft_ray.stages import merge_cache
from speechft_ray.stages.merge_cache import MergeInputs, merge_with_cache
from tests.merging.toy_states import BASE, DONORS, assert_same, copy_state


@pytest.fixture(autouse=True)
def empty_cache() -> Iterator[None]:
    merge_cache._mergers.clear()
    yield
    merge_cache._mergers.clear()


class CountingReader:
    """Counts how often the donors are read."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> MergeInputs:
        self.times += 1
        return MergeInputs(BASE, DONORS, ("head.",), None)


def run_merge(
    names: tuple[str, ...], read: CountingReader, method: str = "ties", alpha: float = 0.5
) -> dict[str, torch.Tensor]:
    with merge_with_cache(names, read, method, {}, alpha) as state:
        return copy_state(state)


def test_the_same_donors_are_read_once_and_others_again() -> None:
    read = CountingReader()
    for method in ("ties", "linear"):
        for alpha in (0.25, 0.75):
            expected = merge(method, {}, BASE, DONORS, alpha, ("head.",))
            assert_same(run_merge(("base", "a"), read, method, alpha), copy_state(expected))
    assert read.times == 1
    run_merge(("base", "b"), read)
    assert read.times == 2


def test_the_longest_unused_goes_when_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    read = CountingReader()
    run_merge(("a",), read)
    (_, size), *_ = merge_cache._mergers.values()
    monkeypatch.setattr(merge_cache, "MAX_BYTES", 2 * size)
    for name in "bacb":  # c takes the place of b, and b then that of a
        run_merge((name,), read)
    assert read.times == 4
    assert list(merge_cache._mergers) == [("c",), ("b",)]


def test_what_is_too_large_to_keep_is_merged_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge_cache, "MAX_BYTES", 10)
    assert_same(
        run_merge(("a",), CountingReader()),
        copy_state(merge("ties", {}, BASE, DONORS, 0.5, ("head.",))),
    )
    assert not merge_cache._mergers


def test_a_failed_merge_leaves_nothing_behind() -> None:
    with pytest.raises(UserError), merge_with_cache(("a",), CountingReader(), "slerp", {}, 0.5):
        pass
    assert not merge_cache._mergers
    run_merge(("a",), CountingReader())  # and the next one gets its turn
