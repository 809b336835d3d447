"""Implements ``Encoder`` for a built network of s3prl."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from speechft_ray.core.units import FRAME_FIELD_SAMPLES
from speechft_ray.speech.encoders.base import (
    MASK_EMBEDDING,
    HiddenStates,
    Shape,
    no_mask_embedding_error,
    too_short_error,
)


class Network(Protocol):
    """A model that was built from a configuration, and its forward passes."""

    model: torch.nn.Module

    def conv_features(self, waves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Returns the output of the front end for each waveform, ``(frames, channels)`` float32;
        none depends on the other waveforms."""
        ...

    def hidden_states_from(
        self, features: Sequence[torch.Tensor], masks: Sequence[torch.Tensor] | None
    ) -> tuple[torch.Tensor, ...]:
        """Returns the hidden states, each ``(batch, frames, dim)``, of outputs of the front end,
        each ``(frames, channels)``."""
        ...


class WaveformEncoder:
    """A built encoder. Its hidden states are the input of each transformer layer and the output of
    the encoder."""

    def __init__(self, network: Network, title: str, shape: Shape) -> None:
        self._network, self._title = network, title
        self.dim, self.state_count = shape.dim, shape.state_count

    def hidden_states(self, waves: Sequence[torch.Tensor]) -> HiddenStates:
        """Encodes waveforms; see ``Encoder.hidden_states``. Raises ``UserError`` for an empty batch
        and for a waveform shorter than 400 samples."""
        return self.hidden_states_from(self.conv_features(waves))

    def conv_features(self, waves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Runs the front end alone; see ``Encoder.conv_features``. Gradient flows into its
        parameters where they require it."""
        shortest = min((wave.shape[0] for wave in waves), default=0)
        if shortest < FRAME_FIELD_SAMPLES:
            raise too_short_error(self._title, shortest)
        return self._network.conv_features(waves)

    def hidden_states_from(
        self, features: Sequence[torch.Tensor], masks: Sequence[torch.Tensor] | None = None
    ) -> HiddenStates:
        """Runs everything after the front end; see ``Encoder.hidden_states_from``."""
        if masks is not None and not hasattr(self._network.model, MASK_EMBEDDING):
            raise no_mask_embedding_error(self._title)
        states, frames = self._network.hidden_states_from(features, masks), list(map(len, features))
        assert all(state.shape[1] >= max(frames) for state in states), (
            f"{self._title} yields too few frames"
        )
        return HiddenStates(states=states, frames=torch.tensor(frames))

    def module(self) -> torch.nn.Module:
        """Returns s3prl's model; its parameter names are those of the checkpoints."""
        return self._network.model
