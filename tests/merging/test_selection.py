"""The k-th smallest magnitude is that of a sort: with and without a sample, in any blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechft_ray.merging import _selection, _trim
from speechft_ray.merging._selection import RankedMagnitude, Sample, select_kth_smallest
from speechft_ray.merging.param_reader import ParamGroup, make_reader

Vectors = Sequence[torch.Tensor]


def sort_and_take(values: torch.Tensor, rank: int) -> RankedMagnitude:
    if rank == 0:
        return RankedMagnitude(0.0, 0, 0)
    ordered = np.sort(np.abs(values.numpy().astype(np.float64)))
    value = ordered[rank - 1]
    return RankedMagnitude(
        float(value), rank - int((ordered < value).sum()), int((ordered == value).sum())
    )


def select(vectors: Vectors, rank: int, step: int | None, block: int) -> list[RankedMagnitude]:
    """Selects from vectors in blocks, with a sample of one of every ``step`` positions."""

    def passes() -> Iterator[Sequence[torch.Tensor]]:
        return zip(*(torch.split(vector, block) for vector in vectors), strict=True)

    sample = Sample([[vector[::step]] for vector in vectors], len(vectors[0])) if step else None
    return select_kth_smallest(passes, len(vectors), lambda donor, total: rank, sample)


def draw(kind: str, count: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    values = torch.randn(count, generator=source, dtype=dtype)
    if kind == "ties":
        return (values * 4).round() / 4
    if kind == "frozen":  # most positions did not change
        return values * (torch.rand(count, generator=source) > 0.9)
    if kind == "columns":  # magnitudes by column of a matrix of 8
        return values * 2.0 ** torch.arange(count).remainder(8)
    return values


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(["random", "ties", "frozen", "columns"]),
    count=st.integers(1, 4000),
    share=st.floats(0, 1),
    step=st.sampled_from([None, 1, 7, 8, 61]),
    block=st.sampled_from([64, 1000, 4096]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 99),
)
def test_selection_is_that_of_a_sort(
    kind: str, count: int, share: float, step: int, block: int, dtype: torch.dtype, seed: int
) -> None:
    vectors = [draw(kind, count, seed + donor, dtype) for donor in range(2)]
    rank = max(1, round(share * count))
    assert select(vectors, rank, step, block) == [sort_and_take(each, rank) for each in vectors]


@pytest.mark.parametrize("kind", ["random", "ties", "frozen"])
def test_values_of_several_tallies(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_selection, "_FLUSH", 50)
    vectors = [draw(kind, 5000, seed, torch.float32) for seed in range(2)]
    for rank in (1, 777, 4000, 5000):
        assert select(vectors, rank, 7, 64) == [sort_and_take(each, rank) for each in vectors]


def test_a_sample_that_misleads_costs_passes_alone() -> None:
    """One position of eight is large, and the sample meets these alone."""
    vector = torch.where(torch.arange(80_000) % 8 == 0, 1.0, 0.01) * draw(
        "random", 80_000, 0, torch.float32
    )
    assert select([vector], 8000, 8, 4096) == [sort_and_take(vector, 8000)]


def test_a_sample_of_a_large_model_is_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_trim, "SAMPLE_SIZE", 200)
    shapes = {"a": (70, 90), "b": (50_001,), "c": (), "d": (0, 3), "e": (300, 40)}
    source = torch.Generator().manual_seed(0)
    base, donor = (
        {name: torch.randn(shape, generator=source) for name, shape in shapes.items()}
        for _ in range(2)
    )
    groups = tuple(ParamGroup(name=name, keys=(name,)) for name in shapes)
    reader = make_reader(
        groups, base.__getitem__, [donor.__getitem__], torch.float32, lambda name: ()
    )
    sample = _trim._read_sample(reader, groups)
    assert sample is not None and sample.total == sum(tensor.numel() for tensor in base.values())
    assert 50 < sum(map(len, sample.values[0])) <= 200
    vector = torch.cat([(donor[name] - base[name]).flatten() for name in shapes])
    for share in (0.2, 0.9):
        cuts = _trim.compute_cuts(reader, share, "global", "threshold")
        rank = len(vector) - int(len(vector) * share)
        assert cuts["a"][0].least == sort_and_take(vector, rank).value


def test_rank_0_is_no_magnitude() -> None:
    vectors = [draw("random", 100, 0, torch.float32)]
    assert [select(vectors, 0, step, 64)[0].value for step in (None, 7)] == [0.0, 0.0]
