"""The parts that a merge of benchmarks/merging.py cannot do without, each measured alone.

Start-up, reading every input once for each pass of the method, the method's own arithmetic on
blocks that stay in a core's cache, and writing the result: what is above their sum is the cost of
the code around them. CPU seconds, user and system, medians.
"""

from __future__ import annotations

import os
import resource
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open

from speechft_ray.merging._selection import _Tally, _to_keys
from speechft_ray.merging.algebra import combine_all
from speechft_ray.merging.base import validate_params
from speechft_ray.merging.param_reader import (
    BLOCK,
    ParamGroup,
    ParamReader,
    ParamSlice,
    take_sample,
)

DONORS = 3
CACHED_BLOCKS = 8
"""Blocks of the tensor whose arithmetic is measured: few, so that memory hardly counts."""
COUNTED_SHARE = 0.004
"""Share of the values that the search for a cut of the whole model looks at one by one."""
PASSES = {"linear": 1, "TIES": 3, "TIES like mergekit": 2, "DARE-TIES like mergekit": 2}
"""How often each merge reads base and donors, beside a sample (docs/merging.md, "Speed")."""
SETTINGS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "linear": ("linear", {}),
    "TIES": ("ties", {}),
    "TIES like mergekit": ("ties", {"like": "mergekit", "density": 0.2}),
    "DARE-TIES like mergekit": ("dare_ties", {"like": "mergekit", "density": 0.2}),
}


class Floor(NamedTuple):
    """Unavoidable parts of one command, in CPU seconds."""

    start: float
    reading: float
    arithmetic: float
    writing: float

    @property
    def total(self) -> float:
        """Their sum."""
        return sum(self)


def measure_floors(paths: list[Path], folder: Path, start: float, repeats: int) -> dict[str, Floor]:
    """Measures the parts of every merge; ``start``: CPU seconds of the command's start-up."""
    reading = _measure(lambda: _read(paths), repeats)
    writing = _measure(lambda: _write(paths[0].stat().st_size, folder / "floor.bin"), repeats)
    numbers = paths[0].stat().st_size // 4
    floors = {}
    for name, (method, params) in SETTINGS.items():
        seconds = _measure_arithmetic(method, params, 5 * repeats)
        scaled = seconds * numbers / (CACHED_BLOCKS * BLOCK)
        floors[name] = Floor(start, PASSES[name] * reading, scaled, writing)
    return floors


def _measure_arithmetic(method: str, params: Mapping[str, Any], repeats: int) -> float:
    """Measures a method on task vectors that are there, and the sum with the base."""
    checked, reader = validate_params(method, params, DONORS), _make_reader()
    (group,) = reader.groups
    is_global = getattr(checked, "scope", "tensor") == "global" and method == "ties"
    if is_global:
        # A tensor this small gives a poor sample: its cuts are cached, and the search is timed on a
        # range like that of a large model.
        list(combine_all(method, checked, reader))
    keys = np.sort(_to_keys(reader.read(group).vectors[0], torch.float32))
    low, high = (
        int(np.quantile(keys, 0.8 + sign * COUNTED_SHARE / 2, method="nearest")) for sign in (-1, 1)
    )

    def merge() -> None:
        if is_global:
            tallies = [_Tally(low, high) for _ in range(DONORS)]
            for block in reader.blocks():
                for tally, vector in zip(tallies, block.vectors, strict=True):
                    tally.add(_to_keys(vector, torch.float32))
        else:
            reader.cache.clear()
        for block, combined in zip(reader, combine_all(method, checked, reader), strict=True):
            torch.add(block.base, combined.vector)

    return _measure(merge, repeats)


def _read(paths: list[Path]) -> None:
    """Maps all tensors and looks at every number."""
    for path in paths:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  # no mapping
                torch.sum(file.get_tensor(key))


def _write(size: int, path: Path) -> None:
    piece = memoryview(bytes(4 * BLOCK))
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    try:
        for place in range(0, size, len(piece)):
            os.pwrite(descriptor, piece[: size - place], place)
    finally:
        os.close(descriptor)
        path.unlink()


def _make_reader() -> ParamReader:
    """Returns a reader of one tensor whose task vectors are there."""
    source, size = torch.Generator().manual_seed(0), CACHED_BLOCKS * BLOCK
    part = ParamSlice(
        name="w",
        base=0.05 * torch.randn(size, generator=source),
        vectors=tuple(0.002 * torch.randn(size, generator=source) for _ in range(DONORS)),
    )
    return ParamReader(
        groups=(ParamGroup(name="w", keys=("w",)),),
        donors=DONORS,
        read=lambda group: part,
        read_sample=lambda group: take_sample(part),
    )


def _measure(do: Callable[[], object], repeats: int) -> float:
    """Returns the median CPU time of a call; the first call is a warm-up."""
    seconds = []
    for _ in range(repeats + 1):
        start = _cpu_seconds()
        do()
        seconds.append(_cpu_seconds() - start)
    return statistics.median(seconds[1:])


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
