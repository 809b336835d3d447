"""Blocks of files, with and without threads."""

from __future__ import annotations

import threading
import time

import pytest

from speechft_ray.speech.corpora._blocks import map_blocks


@pytest.mark.parametrize("count", [0, 1, 2, 3, 9, 10, 11, 138, 139, 300])
@pytest.mark.parametrize("seconds", [0.0, 0.001])
def test_results_come_in_order(count: int, seconds: float) -> None:
    def wait(block: int) -> int:
        time.sleep(seconds)
        return 2 * block

    assert list(map_blocks(wait, iter(range(count)))) == [2 * block for block in range(count)]


def test_blocks_that_wait_do_so_side_by_side() -> None:
    """Eight waits of 20 ms in threads are shorter than eight in a row, whatever the load."""
    threads_of: list[int] = []

    def wait(block: int) -> None:
        time.sleep(0.02)
        threads_of.append(threading.get_ident())

    list(map_blocks(wait, range(60)))
    assert threads_of[:2] == [threading.get_ident()] * 2
    assert threading.get_ident() not in threads_of[2:] and len(set(threads_of[10:])) > 1


@pytest.mark.parametrize("bad", [0, 5, 40])
def test_an_error_ends_the_work(bad: int) -> None:
    done: list[int] = []

    def fail(block: int) -> int:
        if block == bad:
            raise OSError("gone")
        done.append(block)
        return block

    with pytest.raises(OSError, match="gone"):
        list(map_blocks(fail, range(10_000)))
    assert len(done) < 400


def test_nothing_goes_on_after_closing() -> None:
    done: list[int] = []
    results = map_blocks(done.append, range(10_000))
    next(results)
    results.close()
    assert done == [0]
