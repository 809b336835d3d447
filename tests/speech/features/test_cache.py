"""The feature cache: it returns the values that were written, or nothing, within its budget."""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch

from speechft_ray.speech.features.cache import FeatureCache

ROWS = [(2, torch.arange(8.0).view(4, 2)), (0, torch.full((1, 2), -1.0)), (1, torch.zeros(3, 2))]
SIZE_BYTES = 8 * 2 * 4


def write_entry(
    cache: FeatureCache,
    key: str,
    items: Iterable[tuple[int, torch.Tensor]] = ROWS,
    count: int = 3,
) -> None:
    with cache.write(key, count) as append:
        for index, rows in items:
            append(index, rows)


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    return FeatureCache(tmp_path / "cache", budget_bytes=3 * SIZE_BYTES)


def rows_file(cache: FeatureCache, key: str) -> Path:
    return cache._store.folder("features", key) / "rows.bin"


def test_rows_come_back_in_any_order(cache: FeatureCache) -> None:
    write_entry(cache, "a")
    entry = cache.find("a")
    assert entry is not None
    assert list(entry.counts) == [1, 3, 4]
    assert torch.equal(entry.rows([2, 0, 2]), torch.cat([ROWS[0][1], ROWS[1][1], ROWS[0][1]]))
    assert entry.rows([]).shape == (0, 2)


def test_rows_are_read_to_their_end(cache: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call of Linux returns at most 2 GiB, which one utterance can exceed."""
    write_entry(cache, "a")
    entry = cache.find("a")
    assert entry is not None
    preadv = os.preadv

    def read_little(file: int, buffers: list[memoryview], offset: int) -> int:
        return preadv(file, [buffers[0][:7]], offset)

    monkeypatch.setattr(os, "preadv", read_little)
    assert torch.equal(entry.rows([2, 0]), torch.cat([ROWS[0][1], ROWS[1][1]]))
    os.truncate(rows_file(cache, "a"), SIZE_BYTES - 1)
    with pytest.raises(OSError, match="shorter than its manifest"):
        entry.rows([0, 1, 2])


def test_half_precision_stays_half_precision(cache: FeatureCache) -> None:
    values = torch.randn(5, 3).half()
    write_entry(cache, "a", [(0, values)], 1)
    entry = cache.find("a")
    assert entry is not None
    assert torch.equal(entry.rows([0]), values)


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "manifest"])
def test_a_changed_entry_is_no_entry(cache: FeatureCache, damage: str) -> None:
    write_entry(cache, "a")
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
    write_entry(cache, "a")
    assert cache.find("a") is not None


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EIO, errno.ESTALE, errno.EACCES])
def test_an_entry_that_cannot_be_read_now_is_kept(
    cache: FeatureCache, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Too many open files, say: that is no damage, and the entry took hours to compute."""
    write_entry(cache, "a")

    def fail(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    for name in ("speech.features.rows.os.open", "speech.features.cache.file_sha256"):
        with monkeypatch.context() as patch:
            patch.setattr(f"speechft_ray.{name}", fail)
            with pytest.raises(OSError, match=re.escape(os.strerror(code))):
                cache.find("a")
    assert cache.find("a") is not None


def test_an_entry_of_another_user_is_read(
    cache: FeatureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only its owner may change the time of a file."""
    write_entry(cache, "a")

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "utime", refuse)
    assert cache.find("a") is not None


def test_an_interrupted_write_leaves_nothing(cache: FeatureCache) -> None:
    def yield_then_interrupt() -> Iterator[tuple[int, torch.Tensor]]:
        yield ROWS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_entry(cache, "a", yield_then_interrupt())
    assert cache.find("a") is None
    assert list((cache._store.root / "features").iterdir()) == []


def test_the_least_recently_used_entries_are_removed(cache: FeatureCache) -> None:
    for age, key in enumerate("abc"):
        write_entry(cache, key)
        os.utime(cache._store.folder("features", key) / "manifest.json", (age, age))
    assert cache.find("a") is not None  # used now, so `b` is the oldest
    assert cache.make_room(SIZE_BYTES)
    assert [key for key in "abc" if cache.find(key)] == ["a", "c"]
    assert cache.make_room(3 * SIZE_BYTES)
    assert [key for key in "abc" if cache.find(key)] == []


def test_an_entry_larger_than_the_budget_removes_nothing(cache: FeatureCache) -> None:
    write_entry(cache, "a")
    assert not cache.make_room(3 * SIZE_BYTES + 1)
    assert cache.find("a") is not None


def write_until_killed(root: Path) -> None:
    cache = FeatureCache(root, 3 * SIZE_BYTES)
    with cache.write("killed", 1) as append:
        append(0, torch.ones(9000, 2))
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_killed_writers_left_goes_for_a_new_entry(tmp_path: Path) -> None:
    """It was never counted and never removed, so that the cache outgrew its budget and the disk."""
    for _ in range(2):
        writer = multiprocessing.get_context("fork").Process(
            target=write_until_killed, args=(tmp_path,)
        )
        writer.start()
        writer.join()
    cache = FeatureCache(tmp_path, 3 * SIZE_BYTES)
    write_entry(cache, "a")
    assert len(list((tmp_path / "features").iterdir())) == 3
    assert cache.make_room(SIZE_BYTES)
    assert [path.name for path in (tmp_path / "features").iterdir()] == ["a"]


def test_entries_that_others_are_writing_count(cache: FeatureCache) -> None:
    """Of another host it is not known whether they live: their files go after hours."""
    write_entry(cache, "a")
    folder = cache._store.root / "features" / ".b-another-host-12-0123abcd"
    folder.mkdir()
    (folder / "rows.bin").write_bytes(b"0" * SIZE_BYTES)
    assert not cache.make_room(2 * SIZE_BYTES + 1)
    assert cache.make_room(2 * SIZE_BYTES) and cache.find("a") is None
    with cache.write("own", 1) as append:  # this process lives
        append(0, torch.ones(9000, 2))
        assert not cache.make_room(2 * SIZE_BYTES)
    long_ago = time.time() - 7 * 3600
    for path in (folder / "rows.bin", folder):
        os.utime(path, (long_ago, long_ago))
    assert cache.make_room(3 * SIZE_BYTES)
    assert list((cache._store.root / "features").iterdir()) == []


def test_the_key_depends_on_the_whole_identity() -> None:
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
