"""Merges of the same donors, one after another in one process, read their files once.

A worker of the cluster lives on from job to job. Encoder files are mapped into memory, so the
workers of one node share base and donors in its page cache already; what is kept here for each
process are the task vectors, the combined task vector of the last parameters, and the output
(``merging/resident.py``). docs/merging.md, "Speed", says why they are not shared as well.
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
"""Memory that kept mergers may take in one process: one of three donors of the size of HuBERT Base
takes 2.3 GB."""


class MergeInputs(NamedTuple):
    """What a merge is made of, once it is read."""

    base: StateDict
    donors: Sequence[StateDict]
    protected_prefixes: Sequence[str]
    statistics: Sequence[StateDict] | None


_mergers: OrderedDict[tuple[str, ...], tuple[ResidentMerger, int]] = OrderedDict()
_lock = threading.Lock()


@contextmanager
def resident_merge(
    fingerprints: Sequence[str],
    read: Callable[[], MergeInputs],
    method: str,
    params: Mapping[str, Any],
    alpha: float,
) -> Iterator[dict[str, torch.Tensor]]:
    """Yields the merged state, which the next merge overwrites; other threads wait until the block
    ends.

    ``fingerprints`` name everything that ``read`` returns; it is called when no merger of theirs is
    kept. Raises ``UserError`` as ``algebra.merge`` does.
    """
    key = tuple(fingerprints)
    with _lock:
        merger, size_bytes = _mergers.pop(key) if key in _mergers else _make_merger(read())
        # The longest unused go first, before memory is taken for this one; a merge that fails is
        # not kept.
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
