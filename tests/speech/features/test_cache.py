"""Features on disk: the same numbers again, or none; never more bytes than asked for."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch

from speechft_ray.speech.features.cache import FeatureCache

PIECES = [(2, torch.arange(8.0).view(4, 2)), (0, torch.full((1, 2), -1.0)), (1, torch.zeros(3, 2))]
SIZE_BYTES = 8 * 2 * 4


def make(
    cache: FeatureCache,
    key: str,
    pieces: Iterable[tuple[int, torch.Tensor]] = PIECES,
    count: int = 3,
) -> None:
    with cache.write(key, count) as append:
        for place, rows in pieces:
            append(place, rows)


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    return FeatureCache(tmp_path / "cache", budget_bytes=3 * SIZE_BYTES)


def rows_file(cache: FeatureCache, key: str) -> Path:
    return cache._store.folder("features", key) / "rows.bin"


def test_rows_come_back_in_any_order(cache: FeatureCache) -> None:
    make(cache, "a")
    entry = cache.find("a")
    assert entry is not None
    assert list(entry.counts) == [1, 3, 4]
    assert torch.equal(entry.rows([2, 0, 2]), torch.cat([PIECES[0][1], PIECES[1][1], PIECES[0][1]]))
    assert entry.rows([]).shape == (0, 2)


def test_half_precision_stays_half_precision(cache: FeatureCache) -> None:
    values = torch.randn(5, 3).half()
    make(cache, "a", [(0, values)], 1)
    entry = cache.find("a")
    assert entry is not None
    assert torch.equal(entry.rows([0]), values)


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "manifest"])
def test_a_changed_entry_is_no_entry(cache: FeatureCache, damage: str) -> None:
    make(cache, "a")
    path = rows_file(cache, "a")
    raw = bytearray(path.read_bytes())
    raw[5] ^= 1
    if damage == "manifest":
        (path.parent / "manifest.json").write_text("{")
    elif damage == "gone":
        path.unlink()
    else:
        path.write_bytes(raw if damage == "flip" else raw[:-1])
    assert cache.find("a") is None
    assert not path.parent.exists()
    make(cache, "a")
    assert cache.find("a") is not None


def test_an_interrupted_write_leaves_nothing(cache: FeatureCache) -> None:
    def pieces() -> Iterator[tuple[int, torch.Tensor]]:
        yield PIECES[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(cache, "a", pieces())
    assert cache.find("a") is None
    assert list((cache._store.root / "features").iterdir()) == []


def test_what_was_used_longest_ago_makes_room(cache: FeatureCache) -> None:
    for age, key in enumerate("abc"):
        make(cache, key)
        os.utime(cache._store.folder("features", key) / "manifest.json", (age, age))
    assert cache.find("a") is not None  # used now, so `b` is the oldest
    assert cache.make_room(SIZE_BYTES)
    assert [key for key in "abc" if cache.find(key)] == ["a", "c"]
    assert cache.make_room(3 * SIZE_BYTES)
    assert [key for key in "abc" if cache.find(key)] == []


def test_what_is_larger_than_all_the_room_throws_nothing_out(cache: FeatureCache) -> None:
    make(cache, "a")
    assert not cache.make_room(3 * SIZE_BYTES + 1)
    assert cache.find("a") is not None


def test_the_key_has_everything_in_it() -> None:
    first = FeatureCache.key({"encoder": "a", "corpus": "b"})
    assert first == FeatureCache.key({"corpus": "b", "encoder": "a"})
    assert (
        len(
            {
                first,
                FeatureCache.key({"encoder": "b", "corpus": "a"}),
                FeatureCache.key({"encoder": "a"}),
            }
        )
        == 3
    )
