"""Reads ``conv_feature_layers`` of checkpoints, a Python expression, without evaluating it."""

from __future__ import annotations

import re
from typing import Any

from speechft_ray.core.errors import UserError

ConvLayers = tuple[tuple[int, int, int], ...]
"""Channels, kernel and stride of each convolution."""

PUBLISHED = "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2"
"""wav2vec 2.0, HuBERT and WavLM of every published size (s3prl's and fairseq's default)."""

GEOMETRY = ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2))
"""Kernel and stride of the seven convolutions (HuBERT paper, section III-A): 25 ms field, 20 ms
hop. Other geometries would silently shift every frame label, so they raise."""

MAX_CONV_LAYERS = 32
"""No published speech encoder has more than 7 (wav2vec 2.0, HuBERT, WavLM). The bound keeps ``*
10**9`` from allocating memory."""

MAX_CHANNELS = 8192
"""Sixteen times the published 512."""

_INT = r"\s*\d{1,6}\s*"
_TRIPLE = re.compile(rf"\s*\(({_INT}),({_INT}),({_INT}),?\s*\)\s*")
_REPEAT = re.compile(rf"\s*\[([^\[\]]*)\]\s*(?:\*({_INT}))?")


def read_conv_layers(text: Any) -> ConvLayers:
    """Returns the layers of ``conv_feature_layers``. Raises ``UserError`` when the grammar does not
    accept it, or when its geometry is not ``GEOMETRY``."""
    layers = parse_conv_layers(text)
    if tuple((kernel, stride) for _, kernel, stride in layers) != GEOMETRY:
        raise UserError(
            f"`conv_feature_layers` must have kernels and strides {GEOMETRY} "
            f"(25 ms field, 20 ms hop), but is {layers} instead."
        )
    if max(channels for channels, _, _ in layers) > MAX_CHANNELS:
        raise UserError(
            f"`conv_feature_layers` must have at most {MAX_CHANNELS} channels, "
            f"but is {layers} instead."
        )
    return layers


def parse_conv_layers(text: Any) -> ConvLayers:
    """Parses ``[(dim, kernel, stride), ...] * n + ...``, the only form that checkpoints use.

    Raises ``UserError`` for anything else, for a zero, and for more than ``MAX_CONV_LAYERS``
    layers.
    """
    if not isinstance(text, str) or len(text) > 2000:
        raise _conv_error(text)
    layers: list[tuple[int, int, int]] = []
    for term in text.split("+"):
        match = _REPEAT.fullmatch(term.strip())
        if match is None:
            raise _conv_error(text)
        repeats = int(match[2] or 1)
        if repeats > MAX_CONV_LAYERS:
            raise _conv_error(text)
        layers += _parse_triples(match[1], text) * repeats
    if not 1 <= len(layers) <= MAX_CONV_LAYERS or min(min(layer) for layer in layers) < 1:
        raise _conv_error(text)
    return tuple(layers)


def _parse_triples(text: str, whole: str) -> list[tuple[int, int, int]]:
    triples, position = [], 0
    while match := _TRIPLE.match(text, position):
        triples.append((int(match[1]), int(match[2]), int(match[3])))
        position = match.end()
        if position == len(text):
            return triples
        if text[position] != ",":
            break
        position += 1
        if not text[position:].strip():
            return triples
    raise _conv_error(whole)


def _conv_error(text: Any) -> UserError:
    return UserError(
        "`conv_feature_layers` must read like `[(512, 10, 5)] + [(512, 3, 2)] * 4` "
        f"(dim, kernel, stride; at most {MAX_CONV_LAYERS} layers), "
        f"but is {str(text)[:80]!r} instead. Nothing in it was evaluated."
    )
