"""A cache of resident mergers: merges of the same donors in one process read their files once.

A worker process of the cluster runs many jobs. Encoder files are mapped into memory, so the workers
of a node share base and donors in its page cache. This cache holds per process the task vectors,
the combined task vectors of the last parameters, and the output (``merging/resident.py``).
docs/merging.md, "Speed", says why workers do not share them.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from speechft_ray.merging.alignment import StateDict
from speechft_ray.merging.resident import CACHE_SIZE, ResidentMerger

MAX_BYTES = 4 << 30
"""Memory limit of the cached mergers of one process. A merger of three donors of the size of HuBERT
Base takes 2.3 GB."""


class MergeInputs(NamedTuple):
    """The tensors that a merge reads."""

    base: StateDict
    donors: Sequence[StateDict]
    protected_prefixes: Sequence[str]
    statistics: Sequence[StateDict] | None


_mergers: OrderedDict[tuple[str, ...], tuple[ResidentMerger, int]] = OrderedDict()
_lock = threading.Lock()


@contextmanager
def merge_with_cache(
    fingerprints: Sequence[str],
    read: Callable[[], MergeInputs],
    method: str,
    params: Mapping[str, Any],
    alpha: float,
) -> Iterator[dict[str, torch.Tensor]]:
    """Yields the merged state, which the next merge overwrites.

    Other threads wait until the block ends. ``fingerprints`` identify everything that ``read``
    returns, which is called when no merger with these fingerprints is cached. Raises ``UserError``
    where ``algebra.merge`` does.
    """
    key = tuple(fingerprints)
    with _lock:
        merger, size_bytes = _mergers.pop(key) if key in _mergers else _make_merger(read())
        # Evict the least recently used mergers before this one takes memory. The merger itself is
        # cached after the merge, so one that fails is not cached.
        while _mergers and size_bytes + sum(size for _, size in _mergers.values()) > MAX_BYTES:
            _mergers.popitem(last=False)
        merged = merger.merge(method, params, alpha)
        if size_bytes <= MAX_BYTES:
            _mergers[key] = merger, size_bytes
        yield merged


def _make_merger(inputs: MergeInputs) -> tuple[ResidentMerger, int]:
    size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in inputs.base.values())
    merger = ResidentMerger(
        inputs.base, inputs.donors, inputs.protected_prefixes, inputs.statistics
    )
    return merger, size_bytes * (len(inputs.donors) + 1 + CACHE_SIZE)
