"""Checks type and bounds of the options in a checkpoint's configuration, before a network is built
from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from speechft_ray.core.errors import UserError


@dataclass(frozen=True)
class Option:
    """One option: its default, and the values that it may have."""

    default: bool | int | float | str
    minimum: float = 0
    maximum: float = 0
    choices: tuple[str, ...] = ()

    def is_allowed(self, value: Any) -> bool:
        """Whether a value is of the type of the default and within bounds. An integer is allowed
        where the default is a float."""
        if isinstance(self.default, bool):
            return isinstance(value, bool)
        if isinstance(self.default, str):
            return isinstance(value, str) and value in self.choices
        numbers = (int, float) if isinstance(self.default, float) else (int,)
        return (
            isinstance(value, numbers)
            and not isinstance(value, bool)
            and self.minimum <= value <= self.maximum
        )

    def __str__(self) -> str:
        if isinstance(self.default, bool):
            return "true or false"
        if isinstance(self.default, str):
            return f"one of {', '.join(self.choices)}"
        kind = "a number" if isinstance(self.default, float) else "a whole number"
        return f"{kind} within [{self.minimum:g}, {self.maximum:g}]"


def integer(default: int, minimum: int, maximum: int) -> Option:
    """Returns an option that is a whole number within bounds."""
    return Option(default, minimum, maximum)


def probability(default: float) -> Option:
    """Returns an option that is a number within [0, 1]."""
    return Option(default, 0, 1)


def boolean(default: bool) -> Option:
    """Returns an option that is true or false."""
    return Option(default)


def choice(default: str, *others: str) -> Option:
    """Returns an option that is one of these choices."""
    return Option(default, choices=(default, *others))


_MAX_WIDTH = 8192
"""Eight times the widest encoder of the paper (1024). Bounds the memory that an untrusted file can
make this process allocate."""

TRANSFORMER: Mapping[str, Option] = {
    "encoder_layers": integer(12, 1, 256),
    "encoder_embed_dim": integer(768, 1, _MAX_WIDTH),
    "encoder_ffn_embed_dim": integer(3072, 1, 8 * _MAX_WIDTH),
    "encoder_attention_heads": integer(12, 1, 256),
    "activation_fn": choice("gelu", "relu", "gelu_fast", "gelu_accurate", "tanh", "linear"),
    "layer_norm_first": boolean(False),
    "dropout": probability(0.1),
    "attention_dropout": probability(0.1),
    "activation_dropout": probability(0.0),
    "dropout_input": probability(0.0),
    "conv_pos": integer(128, 1, 4096),
    "conv_pos_groups": integer(16, 1, _MAX_WIDTH),
}
"""Options of the transformer of all four families. Defaults are those of wav2vec 2.0, HuBERT and
WavLM in s3prl and fairseq."""

CONVOLUTIONS: Mapping[str, Option] = {
    "extractor_mode": choice("default", "layer_norm"),
    "conv_bias": boolean(False),
    "dropout_features": probability(0.0),
}
"""Options of the convolutional front end; its geometry is in ``_conv_layers``."""

FINAL_DIM = integer(0, -1, _MAX_WIDTH)
"""Width of the pre-training projection; 0 or less means that of the encoder."""

LOGIT_TEMPERATURE = Option(0.1, 1e-6, 1e6)

SEQUENCE_MULTIPLE = integer(2, 1, 64)
"""The transformer pads frames to a multiple of this, and cuts its output again."""

TRANSFORMER_LAYERS = choice("transformer")
"""A conformer would be a family of its own."""


def read_options(
    where: str, values: Mapping[str, Any], options: Mapping[str, Option]
) -> dict[str, Any]:
    """Returns every option, with its default where ``values`` lack it. Other keys are ignored: they
    are options of training loops.

    ``where`` is the section's name in errors. Raises ``UserError`` for a value of another type or
    out of bounds.
    """
    settings = {key: values.get(key, option.default) for key, option in options.items()}
    for key, value in settings.items():
        if not options[key].is_allowed(value):
            raise UserError(
                f"`{where}.{key}` must be {options[key]}, but is {str(value)[:80]!r} instead."
            )
    return settings


def read_section(title: str, config: Mapping[str, Any], key: str, kind: type) -> Any:
    """Returns a part of a configuration. Raises ``UserError`` when it is missing or of another
    type."""
    value = config.get(key)
    if not isinstance(value, kind):
        needed = "a table" if kind is dict else "a list"
        actual = "missing" if value is None else type(value).__name__
        raise UserError(
            f"the configuration of a {title} needs `{key}` ({needed}), but it is {actual} instead."
        )
    return value
