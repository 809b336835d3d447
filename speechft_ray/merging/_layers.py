"""Which encoder layer a parameter belongs to, by its name."""

from __future__ import annotations

import re
from collections.abc import Iterable

from speechft_ray.core.errors import UserError

ENCODER_LAYER = r"(^|\.)encoder\.layers\.(?P<layer>\d+)\."
"""Names of fairseq, s3prl and transformers for HuBERT, wav2vec 2.0, WavLM, data2vec and DeCoAR 2.
It does not take the front end for layers, whose convolutions are numbered as well
(``feature_extractor.conv_layers.3``)."""


def check_pattern(pattern: str, needs_layer: bool = False) -> str:
    """Returns the pattern. Raises ``ValueError`` when it is no regular expression or has no group
    ``layer`` where it must."""
    try:
        groups = re.compile(pattern).groupindex
    except re.error as error:
        raise ValueError(f"`{pattern}` is no regular expression: {error}") from None
    if needs_layer and "layer" not in groups:
        raise ValueError(
            rf"`{pattern}` must have a group for the number of the layer, as in `blocks\.(?P<layer>\d+)\.`"
        )
    return pattern


def layer_of(name: str, pattern: str) -> int | None:
    """Returns the number of the layer that a parameter belongs to; ``None``: to none."""
    found = re.search(pattern, name)
    return int(found["layer"]) if found else None


def count_layers(names: Iterable[str], pattern: str) -> int:
    """Returns one more than the highest number of a layer. Raises ``UserError`` when no parameter
    belongs to one."""
    layers = [layer for layer in (layer_of(name, pattern) for name in names) if layer is not None]
    if not layers:
        raise UserError(
            f"no parameter of the base belongs to a layer by the pattern `{pattern}`: set `layer_pattern` to what its layers "
            "are called."
        )
    return max(layers) + 1
