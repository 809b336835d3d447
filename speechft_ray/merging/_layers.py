"""Checks patterns that find the layer of a parameter in its name, and counts the layers."""

from __future__ import annotations

import re
from collections.abc import Iterable

from speechft_ray.core.errors import UserError
from speechft_ray.core.layers import layer_of


def check_pattern(pattern: str, needs_layer: bool = False) -> str:
    """Returns the pattern.

    Raises ``ValueError`` when it is no regular expression, or has no group ``layer`` and
    ``needs_layer`` is set.
    """
    try:
        groups = re.compile(pattern).groupindex
    except re.error as error:
        raise ValueError(f"`{pattern}` is no regular expression: {error}") from None
    if needs_layer and "layer" not in groups:
        raise ValueError(
            f"`{pattern}` must have a group for the number of the layer, "
            r"as in `blocks\.(?P<layer>\d+)\.`"
        )
    return pattern


def count_layers(names: Iterable[str], pattern: str) -> int:
    """Returns one more than the highest layer number.

    Raises ``UserError`` when no parameter belongs to a layer.
    """
    layers = [layer for layer in (layer_of(name, pattern) for name in names) if layer is not None]
    if not layers:
        raise UserError(
            f"no parameter of the base belongs to a layer by the pattern `{pattern}`: "
            "set `layer_pattern` to what its layers are called."
        )
    return max(layers) + 1
