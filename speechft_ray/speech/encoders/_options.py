"""Options of a configuration that came with a file: checked for type and bounds before a network is
built from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from speechft_ray.core.errors import UserError


@dataclass(frozen=True)
class Option:
    """One option: what it is when absent, and what it may be."""

    default: bool | int | float | str
    least: float = 0
    most: float = 0
    words: tuple[str, ...] = ()

    def allows(self, value: Any) -> bool:
        """Whether a value is of the type of the default and within bounds. An integer is a number
        with a fraction of zero."""
        if isinstance(self.default, bool):
            return isinstance(value, bool)
        if isinstance(self.default, str):
            return isinstance(value, str) and value in self.words
        numbers = (int, float) if isinstance(self.default, float) else (int,)
        return (
            isinstance(value, numbers)
            and not isinstance(value, bool)
            and self.least <= value <= self.most
        )

    def __str__(self) -> str:
        if isinstance(self.default, bool):
            return "true or false"
        if isinstance(self.default, str):
            return f"one of {', '.join(self.words)}"
        kind = "a number" if isinstance(self.default, float) else "a whole number"
        return f"{kind} within [{self.least:g}, {self.most:g}]"


def whole(default: int, least: int, most: int) -> Option:
    """A whole number within bounds."""
    return Option(default, least, most)


def share(default: float) -> Option:
    """A probability."""
    return Option(default, 0, 1)


def flag(default: bool) -> Option:
    """True or false."""
    return Option(default)


def word(default: str, *others: str) -> Option:
    """One of some words."""
    return Option(default, words=(default, *others))


_WIDEST = 8192
"""Eight times the widest encoder of the paper (1024); bounds what a stranger's file can make us
allocate."""

TRANSFORMER: Mapping[str, Option] = {
    "encoder_layers": whole(12, 1, 256),
    "encoder_embed_dim": whole(768, 1, _WIDEST),
    "encoder_ffn_embed_dim": whole(3072, 1, 8 * _WIDEST),
    "encoder_attention_heads": whole(12, 1, 256),
    "activation_fn": word("gelu", "relu", "gelu_fast", "gelu_accurate", "tanh", "linear"),
    "layer_norm_first": flag(False),
    "dropout": share(0.1),
    "attention_dropout": share(0.1),
    "activation_dropout": share(0.0),
    "dropout_input": share(0.0),
    "conv_pos": whole(128, 1, 4096),
    "conv_pos_groups": whole(16, 1, _WIDEST),
}
"""The transformer of all four families; defaults are those of wav2vec 2.0, HuBERT and WavLM in
s3prl and fairseq."""

CONVOLUTIONS: Mapping[str, Option] = {
    "extractor_mode": word("default", "layer_norm"),
    "conv_bias": flag(False),
    "dropout_features": share(0.0),
}
"""The learned down-sampling module; its geometry is in ``_conv_layers``."""

FINAL_DIM = whole(0, -1, _WIDEST)
"""Width of the pre-training projection; nothing or less means that of the encoder."""

LOGIT_TEMPERATURE = Option(0.1, 1e-6, 1e6)

SEQUENCE_MULTIPLE = whole(2, 1, 64)
"""Frames are padded to a multiple of this and cut again."""

TRANSFORMER_LAYERS = word("transformer")
"""Conformers would be another family."""


def read_options(
    where: str, values: Mapping[str, Any], options: Mapping[str, Option]
) -> dict[str, Any]:
    """Returns every option, with its default where ``values`` lack it; other keys belong to
    somebody's training loop.

    ``where`` is the section, for people. Raises ``UserError`` for a value of another type or out of
    bounds.
    """
    found = {key: values.get(key, option.default) for key, option in options.items()}
    for key, value in found.items():
        if not options[key].allows(value):
            raise UserError(
                f"`{where}.{key}` must be {options[key]}, but is {str(value)[:80]!r} instead."
            )
    return found


def section(title: str, config: Mapping[str, Any], key: str, kind: type) -> Any:
    """Returns a part of a configuration. Raises ``UserError`` when it is missing or of another
    type."""
    value = config.get(key)
    if not isinstance(value, kind):
        raise UserError(
            f"the configuration of a {title} needs `{key}` ({'a table' if kind is dict else 'a list'}), "
            f"but it is {'missing' if value is None else type(value).__name__} instead."
        )
    return value
