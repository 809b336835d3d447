"""Expands the axes of an entry of a search space.

An axis takes the place of a value: ``alpha: {grid: [0, 0.25, 1]}``. Grids are crossed; ``uniform``,
``loguniform`` and ``choice`` are drawn ``samples`` times per grid point from the entry's
``sample_seed``. ``alpha: {curve: 21}`` of a merge is a grid of which most points are predicted
(``core.alpha_curves``).
"""

from __future__ import annotations

import itertools
import math
import random
import sys
from collections.abc import Iterator
from typing import Any

from speechft_ray.core.alpha_curves import is_curve, read_curve
from speechft_ray.core.validation import AXES, AxisError, Steps

SAMPLING = ("samples", "sample_seed")
"""Keys of an entry beside the fields of its spec: how often its axes are drawn, and the seed."""
LARGEST_EXPANSION = 100_000
"""Entries that one section may expand to; more is taken for a mistake."""


def expand(entry: Any) -> Iterator[Any]:
    """Yields the concrete versions of one entry, in the order of its axes.

    Raises ``AxisError`` for a malformed axis.
    """
    # How often axes with a distribution are drawn, and from which seed.
    samples, seed = 1, 0
    if isinstance(entry, dict):
        entry = dict(entry)
        samples, seed = entry.pop("samples", 1), entry.pop("sample_seed", 0)
        if type(samples) is not int or samples < 1:
            raise AxisError(
                ("samples",), f"must be a whole number of at least 1, but is {samples!r} instead."
            )
        if type(seed) is not int:
            raise AxisError(("sample_seed",), f"must be a whole number, but is {seed!r} instead.")
    # A curve over alpha is a grid of alphas.
    alpha = entry.get("alpha") if isinstance(entry, dict) else None
    curve = read_curve(alpha, ("alpha",)) if is_curve(alpha) else None
    if curve:
        entry = {**entry, "alpha": {"grid": curve.alphas}}
    # The axes of the entry, grids apart from distributions.
    grids: list[tuple[Steps, list[Any]]] = []
    draws: list[tuple[Steps, str, list[Any]]] = []
    for path, kind, values in _axes(entry, ()):
        if kind == "grid":
            grids.append((path, values))
        else:
            draws.append((path, kind, values))
    if samples > 1 and not draws:
        raise AxisError(("samples",), "needs an axis that is drawn: uniform, loguniform or choice.")
    if math.prod(len(values) for _, values in grids) * samples > LARGEST_EXPANSION:
        raise AxisError(
            (), f"the axes give more than {LARGEST_EXPANSION} points: make the grids smaller."
        )
    # Every grid point, with `samples` draws each.
    source = random.Random(seed)
    for point in itertools.product(*(values for _, values in grids)):
        for _ in range(samples):
            concrete = entry
            for (path, _), value in zip(grids, point, strict=True):
                concrete = _replace(concrete, path, value)
            for path, kind, values in draws:
                concrete = _replace(concrete, path, _draw(source, kind, values))
            yield curve.mark(concrete) if curve else concrete


def _axes(value: Any, path: Steps) -> Iterator[tuple[Steps, str, list[Any]]]:
    if isinstance(value, dict):
        if is_curve(value) and len(value) <= 3:
            read_curve(value, path)  # refuses it
        kinds = [key for key in value if key in AXES]
        if len(kinds) == 1 and len(value) == 1:
            yield path, kinds[0], _axis_values(kinds[0], value[kinds[0]], path)
            return
        for key, item in value.items():
            yield from _axes(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _axes(item, (*path, index))


def _axis_values(kind: str, values: Any, path: Steps) -> list[Any]:
    if not isinstance(values, list) or not values:
        raise AxisError(
            path, f"`{kind}` must be a list that is not empty, but is {values!r} instead."
        )
    if kind in ("uniform", "loguniform"):
        numbers = [
            value
            for value in values
            if isinstance(value, int | float) and not isinstance(value, bool)
        ]
        if (
            len(values) != 2
            or len(numbers) != 2
            or not -sys.float_info.max <= numbers[0] < numbers[1] <= sys.float_info.max
        ):
            raise AxisError(
                path,
                f"`{kind}` must be finite [low, high] with low < high, but is {values!r} instead.",
            )
        if kind == "loguniform" and numbers[0] <= 0:
            raise AxisError(
                path, f"`loguniform` needs a low end above 0, but it is {numbers[0]} instead."
            )
    return values


def _draw(source: random.Random, kind: str, values: list[Any]) -> Any:
    if kind == "choice":
        return source.choice(values)
    low, high = values
    if kind == "uniform":
        return source.uniform(low, high)
    return math.exp(source.uniform(math.log(low), math.log(high)))


def _replace(value: Any, path: Steps, leaf: Any) -> Any:
    if not path:
        return leaf
    head, *rest = path
    if isinstance(value, dict):
        return {
            key: _replace(item, tuple(rest), leaf) if key == head else item
            for key, item in value.items()
        }
    return [
        _replace(item, tuple(rest), leaf) if index == head else item
        for index, item in enumerate(value)
    ]
