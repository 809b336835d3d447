"""What an encoder is to the rest of the house, and where families register."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch

from speechft_ray.core.registry import Registry


class HiddenStates(NamedTuple):
    """All hidden states of one batch.

    ``states``: one tensor per state, each ``(batch, frames, dim)``; the first is the input of layer 1, the last the output of
    the encoder. ``frames``: valid frames per utterance ``(batch,)``, int64.
    """

    states: tuple[torch.Tensor, ...]
    frames: torch.Tensor


class Encoder(Protocol):
    """A built encoder: a ``torch.nn.Module`` that turns waveforms into hidden states.

    It follows its own ``training`` flag (dropout on or off). Parameter names are those of its family's checkpoints.
    """

    dim: int
    state_count: int

    def hidden_states(self, waves: Sequence[torch.Tensor]) -> HiddenStates:
        """Encodes waveforms, each ``(samples,)`` float32 at 16 kHz, padded together to the longest.

        Raises ``UserError`` when a waveform is shorter than one frame (400 samples).
        """
        ...

    def module(self) -> torch.nn.Module:
        """The underlying module, for parameters and devices."""
        ...


@dataclass(frozen=True, kw_only=True)
class EncoderWeights:
    """One encoder at rest: everything that a file holds and nothing that a machine adds.

    ``config`` is plain JSON data (the family's own keys); ``state`` maps parameter names to float32 CPU tensors.
    """

    family: str
    config: Mapping[str, Any]
    state: Mapping[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class EncoderFamily:
    """A registered family, declared as data plus one builder.

    ``front_end_prefixes``: parameter name prefixes of the learned down-sampling module (empty where a family has none).
    ``pretraining_only_prefixes``: parameters that take no part in features; a merge keeps their base value.
    ``build(weights)`` returns a fresh ``Encoder`` holding a copy of those weights, in eval mode; raises ``UserError`` naming
    the first five missing, unexpected or misshapen parameters.
    """

    name: str
    front_end_prefixes: tuple[str, ...]
    pretraining_only_prefixes: tuple[str, ...]
    build: Callable[[EncoderWeights], Encoder]


FAMILIES: Registry[EncoderFamily] = Registry("encoder family", "speechft_ray.speech.encoders")
