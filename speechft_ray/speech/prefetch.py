"""Reads ahead of a device: threads decode what comes next while the device computes.

Decoding releases Python's lock (soundfile, numpy, files), so threads are enough. Results come in
the order of the items, whichever thread is first, so reading ahead changes no number.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

import torch

from speechft_ray.speech.corpora.base import Corpus, Utterance
from speechft_ray.speech.synthesis.workers import usable_cores

Item = TypeVar("Item")
Key = TypeVar("Key")
Value = TypeVar("Value")

MAX_ITEMS = 256
"""Items that are read ahead at most."""

MAX_BYTES = 128 << 20
"""What is read ahead takes at most this in memory: 35 minutes of audio."""


def count_readers(device: torch.device, corpus: Corpus) -> int:
    """Returns how many threads should read a corpus ahead of a device; 0: none, reading is a copy.

    A GPU encodes ten times as fast as a thread decodes, so there every CPU of this job reads: those
    that torch may use (``stages.perform`` sets them to what the job asked for), of those that the
    process may run on. On a CPU decoding takes a hundredth of the time of encoding: one thread is
    enough, and waits for the disk or the network meanwhile.
    """
    if corpus.is_in_memory:
        return 0
    return 1 if device.type == "cpu" else max(1, min(torch.get_num_threads(), usable_cores()))


def read_ahead(
    items: Iterable[Item],
    read: Callable[[Item], Value],
    size_bytes: Callable[[Item], int],
    threads: int,
    max_items: int = MAX_ITEMS,
    max_bytes: int = MAX_BYTES,
) -> Generator[tuple[Item, Value], None, None]:
    """Yields each item with what ``read`` returns for it, in the order of ``items``.

    ``items`` may be endless; it is iterated in the caller's thread, ahead of what is yielded.
    ``size_bytes`` tells the size of an item's value before it is read. At most ``max_items`` items
    of at most ``max_bytes`` together, and always at least one, are being read or wait to be
    yielded. Without ``threads`` every item is read when it is asked for.

    What ``read`` raises is raised in place of its value. The threads end with the generator: at the
    end of the items, on an error or an interrupt, and when the generator is closed. What is being
    read then is waited for, and nothing else is read.
    """
    if threads == 0:
        for item in items:
            yield item, read(item)
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="speechft-reader")
    waiting: deque[tuple[Item, int, Future[Value]]] = deque()
    rest = ((item, size_bytes(item)) for item in items)
    upcoming, waiting_bytes = next(rest, None), 0

    def submit() -> None:
        nonlocal upcoming, waiting_bytes
        while upcoming is not None:
            item, size = upcoming
            is_full = len(waiting) >= max_items or waiting_bytes + size > max_bytes
            if waiting and is_full:
                break
            waiting.append((item, size, pool.submit(read, item)))
            waiting_bytes += size
            upcoming = next(rest, None)

    try:
        submit()
        while waiting:
            item, size, future = waiting.popleft()
            value = future.result()
            waiting_bytes -= size
            submit()  # before the caller computes: the threads read meanwhile
            yield item, value
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def read_groups(
    groups: Iterable[tuple[Key, Sequence[Item]]],
    read: Callable[[Item], Value],
    size_bytes: Callable[[Item], int],
    threads: int,
) -> Generator[tuple[Key, list[Value]], None, None]:
    """Yields the key of each group with the values of its items, which must not be empty; the items
    of one or several groups are read at once. All else is as in ``read_ahead``."""
    items = ((key, len(group), item) for key, group in groups for item in group)
    values: list[Value] = []
    with closing(
        read_ahead(items, lambda entry: read(entry[2]), lambda entry: size_bytes(entry[2]), threads)
    ) as pairs:
        for (key, count, _), value in pairs:
            values.append(value)
            if len(values) == count:
                yield key, values
                values = []


def wave_bytes(utterance: Utterance) -> int:
    """Returns the size of an utterance's audio as it is read, float32."""
    return 4 * utterance.samples


def pin(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Returns a tensor of the CPU in memory from which a GPU copies without waiting
    (``non_blocking``); for another device as it is."""
    return tensor.pin_memory() if device.type == "cuda" else tensor
