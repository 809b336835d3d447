"""Finds the number of the layer that a parameter belongs to in its name."""

from __future__ import annotations

import re

ENCODER_LAYER = r"(^|\.)encoder\.layers\.(?P<layer>\d+)\."
"""Names of fairseq, s3prl and transformers for HuBERT, wav2vec 2.0, WavLM, data2vec and DeCoAR 2.
The numbered convolutions of the front end (``feature_extractor.conv_layers.3``) do not match."""

ANY_LAYER = r"(^|\.)layers\.(?P<layer>\d+)\."
"""Names with or without ``encoder``; the front end's convolutions do not match either."""


def layer_of(name: str, pattern: str = ENCODER_LAYER) -> int | None:
    """Returns the number of the layer that a parameter belongs to; ``None`` where it is in none.

    ``pattern``: a regular expression with a group ``layer``.
    """
    match = re.search(pattern, name)
    return int(match["layer"]) if match else None
