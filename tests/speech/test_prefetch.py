"""Reading ahead: in order, within its bounds, and without a thread left behind.

Threads meet at barriers and events, so nothing depends on how fast the machine is.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechft_ray.speech.prefetch import count_readers, read_ahead, read_groups
from tests.superb.toy_models import toy_corpus

SECONDS = 60.0
"""Longest wait for another thread; it is reached only where the code is wrong."""


def reading_threads() -> list[str]:
    return [item.name for item in threading.enumerate() if item.name.startswith("speechft-reader")]


@pytest.fixture(autouse=True)
def leaves_no_thread() -> Iterator[None]:
    assert reading_threads() == []
    yield
    assert reading_threads() == []


def size_one(item: Any) -> int:
    return 1


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_values_come_in_the_order_of_the_items_whichever_is_ready_first(threads: int) -> None:
    later_is_read = threading.Event()

    def read(item: int) -> int:
        if item == 0 and threads > 1:
            assert later_is_read.wait(SECONDS)
        elif item == 1:
            later_is_read.set()
        return item * item

    pairs = list(read_ahead(range(9), read, size_one, threads))
    assert pairs == [(item, item * item) for item in range(9)]


def test_the_next_item_is_read_while_the_caller_computes() -> None:
    events = [threading.Event() for _ in range(4)]
    with_events = read_ahead(range(4), lambda item: events[item].set(), size_one, threads=1)
    for item, _ in with_events:
        # The caller has an item, and does not ask for the next one before that one is read.
        assert events[min(item + 1, 3)].wait(SECONDS)


def test_threads_read_at_once() -> None:
    barrier = threading.Barrier(3)
    values = read_ahead(range(6), lambda item: barrier.wait(SECONDS), size_one, threads=3)
    assert len(list(values)) == 6  # alone, a thread would wait at the barrier for ever


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    sizes=st.lists(st.integers(0, 12), max_size=12),
    threads=st.integers(1, 3),
    max_items=st.integers(1, 4),
    max_bytes=st.integers(1, 16),
)
def test_no_more_than_the_bounds_is_read_ahead(
    sizes: list[int], threads: int, max_items: int, max_bytes: int
) -> None:
    started: list[int] = []
    lock = threading.Lock()

    def read(item: int) -> int:
        with lock:
            started.append(item)
        return item

    def in_flight(done: int) -> list[int]:
        with lock:
            return [item for item in started if item >= done]

    values = read_ahead(
        range(len(sizes)), read, lambda item: sizes[item], threads, max_items, max_bytes
    )
    for done, (item, value) in enumerate(values, 1):
        assert item == value == done - 1
        ahead = in_flight(done)
        assert len(ahead) <= max_items
        assert len(ahead) <= 1 or sum(sizes[item] for item in ahead) <= max_bytes
    assert sorted(started) == list(range(len(sizes)))


@pytest.mark.parametrize("threads", [0, 2])
def test_endless_items_are_drawn_only_as_far_as_the_bound(threads: int) -> None:
    drawn: list[int] = []

    def draw() -> Iterator[int]:
        for item in count():
            drawn.append(item)
            yield item

    values = read_ahead(draw(), str, size_one, threads, max_items=3)
    assert [value for _, value in islice(values, 5)] == ["0", "1", "2", "3", "4"]
    assert len(drawn) == (5 if threads == 0 else 9)  # 5 of them yielded, 3 ahead, 1 to be measured
    values.close()


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_the_error_of_a_reader_takes_the_place_of_its_value(threads: int) -> None:
    error = ValueError("damaged")

    def read(item: int) -> int:
        if item >= 3:
            raise error if item == 3 else RuntimeError("a later one")
        return item

    values, read_before = read_ahead(range(9), read, size_one, threads), []
    with pytest.raises(ValueError) as raised:
        read_before += [value for _, value in values]
    assert raised.value is error
    assert reading_threads() == []  # although the error and its traceback are still held


def test_items_before_an_error_are_yielded() -> None:
    def read(item: int) -> int:
        return 1 // (2 - item)

    seen = []
    with pytest.raises(ZeroDivisionError):
        for item, _ in read_ahead(range(5), read, size_one, threads=3):
            seen.append(item)
    assert seen == [0, 1]


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_an_error_of_the_caller_ends_the_threads(raised: type[BaseException]) -> None:
    def compute() -> None:
        for item, _ in read_ahead(count(), str, size_one, threads=2):
            if item == 2:
                raise raised

    with pytest.raises(raised) as info:
        compute()
    assert reading_threads() == []
    assert info.value is not None  # its traceback still refers to the frame of `compute`


def test_an_interrupt_while_waiting_ends_the_threads() -> None:
    """What Python raises in the thread that waits for a value, which an interrupt does."""

    def read(item: int) -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(read_ahead(range(3), read, size_one, threads=1))


def test_closing_waits_for_what_is_being_read_and_reads_nothing_more() -> None:
    may_end, second_began = threading.Event(), threading.Event()
    started: list[int] = []

    def read(item: int) -> int:
        started.append(item)
        if item == 1:
            second_began.set()
            assert may_end.wait(SECONDS)
        return item

    values = read_ahead(range(9), read, size_one, threads=1)
    next(values)
    assert second_began.wait(SECONDS)
    closer = threading.Thread(target=values.close)
    closer.start()
    may_end.set()
    closer.join(SECONDS)
    assert not closer.is_alive()
    assert started in ([0, 1], [0, 1, 2])  # a third may begin before closing takes it back


def test_a_forgotten_generator_ends_its_threads() -> None:
    values = read_ahead(count(), str, size_one, threads=2)
    next(values)
    del values
    gc.collect()


def test_an_error_of_the_items_ends_the_threads() -> None:
    def draw() -> Iterator[int]:
        yield 0
        raise LookupError("no more")

    with pytest.raises(LookupError):
        list(read_ahead(draw(), str, size_one, threads=1))


@pytest.mark.parametrize("threads", [0, 2])
def test_groups_come_with_their_key(threads: int) -> None:
    groups = [("a", [1]), ("b", [2, 3, 4]), ("c", [5, 5])]
    assert list(read_groups(groups, lambda item: -item, size_one, threads)) == [
        ("a", [-1]),
        ("b", [-2, -3, -4]),
        ("c", [-5, -5]),
    ]


def test_the_first_of_the_next_group_is_read_while_a_group_is_computed() -> None:
    events = [threading.Event() for _ in range(6)]
    groups = [(start, [start, start + 1]) for start in (0, 2, 4)]
    for start, _ in read_groups(groups, lambda item: events[item].set(), size_one, threads=1):
        assert events[min(start + 2, 5)].wait(SECONDS)


def test_readers_follow_from_the_device_and_the_cpus_of_the_job() -> None:
    on_disk = toy_corpus({"train": 2})
    in_memory = replace(on_disk, is_in_memory=True)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert [count_readers(device, on_disk) for device in (cpu, gpu)] == [1, 1]
        torch.set_num_threads(2)
        assert count_readers(cpu, on_disk) == 1
        assert count_readers(gpu, on_disk) in (1, 2)  # 1 where the process may use one CPU
        assert [count_readers(device, in_memory) for device in (cpu, gpu)] == [0, 0]
    finally:
        torch.set_num_threads(before)
