"""Defines the interface of encoders, their weights at rest, and the registry of families."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch

from speechft_ray.core.errors import UserError
from speechft_ray.core.registry import Registry
from speechft_ray.core.units import FRAME_FIELD_SAMPLES, FRAME_STRIDE_SAMPLES

MASK_EMBEDDING = "mask_emb"
"""Name of the parameter that replaces the features of masked frames in pre-training, in every
family that has one."""


class HiddenStates(NamedTuple):
    """All hidden states of one batch.

    ``states``: one tensor per state, each ``(batch, frames, dim)``. The first is the input of the
    first layer, the last the output of the encoder. ``frames``: valid frames per utterance
    ``(batch,)``, int64.
    """

    states: tuple[torch.Tensor, ...]
    frames: torch.Tensor


class Encoder(Protocol):
    """A built encoder: computes hidden states of waveforms with a ``torch.nn.Module``.

    The module's ``training`` flag switches dropout. Parameter names are those of the family's
    checkpoints.
    """

    dim: int
    state_count: int

    def hidden_states(self, waves: Sequence[torch.Tensor]) -> HiddenStates:
        """Encodes waveforms, each ``(samples,)`` float32 at 16 kHz, padded together to the longest.

        Padding affects no valid frame: each utterance has the states that it has alone. Frames
        beyond an utterance have arbitrary finite values. Raises ``UserError`` when a waveform is
        shorter than one frame (400 samples).
        """
        ...

    def conv_features(self, waves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Returns the output of the convolutional front end for waveforms of any lengths, each
        ``(samples,)``: one ``(frames, channels)`` each, float32, as for each alone.

        Families without a learned front end return their filter-bank features, the input of the
        first layer with parameters. Raises ``UserError`` as ``hidden_states`` does.
        """
        ...

    def hidden_states_from(
        self, features: Sequence[torch.Tensor], masks: Sequence[torch.Tensor] | None = None
    ) -> HiddenStates:
        """Computes hidden states from outputs of ``conv_features``, each ``(frames, channels)``,
        padded together so that padding affects no valid frame.

        Within an utterance's frames they are what ``hidden_states`` returns for it alone.
        ``masks``: one bool ``(frames,)`` per utterance, true where the mask embedding of
        pre-training replaces the features. Raises ``UserError`` for masks where the encoder has no
        mask embedding.
        """
        ...

    def module(self) -> torch.nn.Module:
        """Returns the underlying module, for parameters and devices."""
        ...


def too_short_error(title: str, samples: int) -> UserError:
    """Returns the error for a waveform shorter than one frame."""
    return UserError(
        f"a waveform has {samples} samples, but {title} needs at least {FRAME_FIELD_SAMPLES} "
        "(25 ms at 16 kHz). Leave such recordings out."
    )


def no_mask_embedding_error(title: str) -> UserError:
    """Returns the error for masks of an encoder without a mask embedding."""
    return UserError(
        f"this {title} has no mask embedding (`{MASK_EMBEDDING}`), "
        "so masked prediction cannot go on from it: "
        "choose an encoder of another family, or a checkpoint that still has it."
    )


@dataclass(frozen=True, kw_only=True)
class EncoderWeights:
    """The weights and configuration of one encoder, as a file holds them.

    ``config`` is plain JSON data with the family's own keys. ``state`` maps parameter names to
    float32 CPU tensors.
    """

    family: str
    config: Mapping[str, Any]
    state: Mapping[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes and modes of an encoder, read from its configuration without building it."""

    layers: int
    """Transformer layers; 0 for an encoder without parameters."""
    dim: int
    state_count: int
    """Hidden states that ``hidden_states`` returns."""
    frame_stride_samples: int = FRAME_STRIDE_SAMPLES
    normalizes_waveform: bool = False
    """Whether each waveform is normalised to zero mean and unit variance, over all its samples."""
    heads: int = 0
    """Attention heads of a layer."""
    feed_forward_dim: int = 0
    layer_norm_first: bool | None = None
    """Whether layers normalise their input (Large) or their output (Base)."""
    extractor_mode: str | None = None
    """``default`` (one GroupNorm over time, Base) or ``layer_norm`` (after every convolution,
    Large); None without a learned front end."""
    conv_layers: tuple[tuple[int, int, int], ...] = ()
    """Channels, kernel and stride of each convolution of the learned front end."""


@dataclass(frozen=True, kw_only=True)
class EncoderFamily:
    """A registered family, declared as data plus functions that read a configuration or build an
    encoder from it.

    ``title``: its name in messages. ``front_end_prefixes``: parameter name prefixes of the learned
    front end (empty where a family has none). ``pretraining_only_prefixes``: prefixes of parameters
    that do not affect features. A merge keeps their base value
    (``compatibility.find_protected_prefixes``), and weights may lack them.

    ``matches(config)``: whether the keys of a configuration are those of this family.
    ``describe(config)`` returns its ``Shape`` without building anything. Raises ``UserError`` for a
    configuration that is another family's, incomplete, of a wrong type, out of bounds, or code.
    ``read_options(config)`` returns every option that the network is built from, with its default
    where the configuration lacks it. Raises ``UserError`` as ``describe`` does.

    ``build(weights)`` returns a new ``Encoder`` with a copy of those weights, in eval mode, with
    exactly their parameters. Raises ``UserError`` as ``describe`` does, and one that names the
    first five missing, unexpected or misshapen parameters.

    ``init_weights(config, seed)`` returns randomly initialised weights that depend on the seed
    alone. It does not change torch's global random state. ``example_config(layers, dim, large)``
    returns a valid configuration of that size, like the published Base or Large: 12 x 768 and
    24 x 1024 (large) are the published ones. ``dim`` must be a multiple of 16. Both are None for a
    family without parameters.
    """

    name: str
    title: str
    front_end_prefixes: tuple[str, ...]
    pretraining_only_prefixes: tuple[str, ...]
    matches: Callable[[Mapping[str, Any]], bool]
    describe: Callable[[Mapping[str, Any]], Shape]
    build: Callable[[EncoderWeights], Encoder]
    init_weights: Callable[[Mapping[str, Any], int], EncoderWeights] | None
    example_config: Callable[[int, int, bool], dict[str, Any]] | None
    read_options: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda config: {}


FAMILIES: Registry[EncoderFamily] = Registry("encoder family", "speechft_ray.speech.encoders")
