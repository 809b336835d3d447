"""What an encoder is to the rest of the house, and where families register."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch

from speechft_ray.core.errors import UserError
from speechft_ray.core.registry import Registry
from speechft_ray.core.units import FRAME_FIELD_SAMPLES, FRAME_STRIDE_SAMPLES

MASK_EMBEDDING = "mask_emb"
"""Name of the parameter, in every family that has one, that stands for a masked frame in
pre-training."""


class HiddenStates(NamedTuple):
    """All hidden states of one batch.

    ``states``: one tensor per state, each ``(batch, frames, dim)``; the first is the input of layer
    1, the last the output of the encoder. ``frames``: valid frames per utterance ``(batch,)``,
    int64.
    """

    states: tuple[torch.Tensor, ...]
    frames: torch.Tensor


class Encoder(Protocol):
    """A built encoder: a ``torch.nn.Module`` that turns waveforms into hidden states.

    It follows its own ``training`` flag (dropout on or off). Parameter names are those of its
    family's checkpoints.
    """

    dim: int
    state_count: int

    def hidden_states(self, waves: Sequence[torch.Tensor]) -> HiddenStates:
        """Encodes waveforms, each ``(samples,)`` float32 at 16 kHz, padded together to the longest.

        Raises ``UserError`` when a waveform is shorter than one frame (400 samples).
        """
        ...

    def conv_features(self, waves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """What the down-sampling says of waveforms of equal length, each ``(samples,)``: one
        ``(frames, channels)`` each, float32, computed without any padding.

        Families without a learned front end return their filter-bank features, before the first
        layer that learns. Raises ``UserError`` as ``hidden_states`` does.
        """
        ...

    def hidden_states_from(
        self, fronts: Sequence[torch.Tensor], masked: Sequence[torch.Tensor] | None = None
    ) -> HiddenStates:
        """Hidden states from outputs of ``front``, padded together so that padding reaches no valid
        frame.

        Within an utterance's frames they are what ``hidden_states`` gives for it alone. ``masked``:
        one bool ``(frames,)`` per utterance, true where the mask embedding of pre-training stands
        instead of the features. Raises ``UserError`` for ``masked`` where there is no mask
        embedding.
        """
        ...

    def module(self) -> torch.nn.Module:
        """The underlying module, for parameters and devices."""
        ...


def too_short(title: str, samples: int) -> UserError:
    """What every family says of a waveform shorter than one frame."""
    return UserError(
        f"a waveform has {samples} samples, but {title} needs at least {FRAME_FIELD_SAMPLES} (25 ms at 16 kHz). "
        "Leave such recordings out."
    )


def no_mask_embedding(title: str) -> UserError:
    """What every family says when frames are to be masked that it cannot mask."""
    return UserError(
        f"this {title} has no mask embedding (`{MASK_EMBEDDING}`), so masked prediction cannot go on from it: "
        "choose an encoder of another family, or a checkpoint that still has it."
    )


@dataclass(frozen=True, kw_only=True)
class EncoderWeights:
    """One encoder at rest: everything that a file holds and nothing that a machine adds.

    ``config`` is plain JSON data (the family's own keys); ``state`` maps parameter names to float32
    CPU tensors.
    """

    family: str
    config: Mapping[str, Any]
    state: Mapping[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a configuration says about an encoder, without building it."""

    layers: int
    """Transformer layers; 0 for an encoder without parameters."""
    dim: int
    state_count: int
    """Hidden states that ``hidden_states`` returns."""
    frame_stride_samples: int = FRAME_STRIDE_SAMPLES
    normalizes_waveform: bool = False
    """Whether each waveform is brought to zero mean and unit variance, over all its samples, before
    it is encoded."""
    heads: int = 0
    """Attention heads of a layer."""
    feed_forward_dim: int = 0
    layer_norm_first: bool | None = None
    """Whether layers normalise their input (Large) or their output (Base)."""
    extractor_mode: str | None = None
    """``default`` (one GroupNorm over time, Base) or ``layer_norm`` (after every convolution,
    Large); None where the down-sampling is not learned."""
    conv_layers: tuple[tuple[int, int, int], ...] = ()
    """Channels, kernel and stride of the learned down-sampling module."""


@dataclass(frozen=True, kw_only=True)
class EncoderFamily:
    """A registered family, declared as data plus functions that read a configuration or build from
    it.

    ``title``: its name for people. ``front_end_prefixes``: parameter name prefixes of the learned
    down-sampling module (empty where a family has none). ``pretraining_only_prefixes``: parameters
    that take no part in features; a merge keeps their base value, and weights may lack them.

    ``matches(config)``: whether the keys of a configuration are those of this family.
    ``describe(config)``: what it says, without building anything. Raises ``UserError`` for a
    configuration that is another family's, incomplete, of a wrong type, out of bounds, or code.
    ``build(weights)`` returns a fresh ``Encoder`` holding a copy of those weights, in eval mode,
    with exactly their parameters; raises ``UserError`` as ``describe`` does, and naming the first
    five missing, unexpected or misshapen parameters. ``init_weights(config, seed)`` returns an encoder
    that has learnt nothing, the same for the same seed; torch's global random state is left as it
    was. None for a family without parameters. ``example_config(layers, dim, large)``: a valid
    configuration of that size, like the published Base or Large: 12 x 768 and 24 x 1024 (large) are
    the published ones. ``dim`` must be a multiple of 16. None for a family without parameters.
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


FAMILIES: Registry[EncoderFamily] = Registry("encoder family", "speechft_ray.speech.encoders")
