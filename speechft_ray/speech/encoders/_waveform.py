"""Implements ``Encoder`` for a built network of s3prl."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from speechft_ray.core.units import FRAME_FIELD_SAMPLES, frame_count
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

    def __call__(self, waves: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Returns the hidden states of waveforms ``(samples,)``, each ``(batch, frames, dim)``."""
        ...

    def conv_features(self, waves: Sequence[torch.Tensor]) -> torch.Tensor:
        """Returns the output of the front end for waveforms of equal length: ``(batch, frames,
        channels)``, float32."""
        ...

    def hidden_states_from(
        self, features: Sequence[torch.Tensor], masks: Sequence[torch.Tensor] | None
    ) -> tuple[torch.Tensor, ...]:
        """Returns hidden states as a call does, from outputs of the front end, each ``(frames,
        channels)``."""
        ...


class WaveformEncoder:
    """A built encoder. Its hidden states are the input of each transformer layer and the output of
    the encoder."""

    def __init__(self, network: Network, title: str, shape: Shape) -> None:
        self._network, self._title = network, title
        self.dim, self.state_count = shape.dim, shape.state_count

    def hidden_states(self, waves: Sequence[torch.Tensor]) -> HiddenStates:
        """Encodes waveforms, each ``(samples,)`` float32 at 16 kHz, padded together to the longest.

        With the ``default`` extractor (one GroupNorm over time, as in Base) padding changes the
        statistics of shorter utterances; batches of equal length are exact. The transformer does
        not attend to padded frames. Raises ``UserError`` for an empty batch and for a waveform
        shorter than 400 samples.
        """
        self._check_length(waves)
        frames = [frame_count(wave.shape[0]) for wave in waves]
        return self._check_frames(self._network(waves), frames)

    def conv_features(self, waves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Runs the front end alone; see ``Encoder.conv_features``. Gradient flows into its
        parameters where they require it."""
        self._check_length(waves)
        return list(self._network.conv_features(waves))

    def hidden_states_from(
        self, features: Sequence[torch.Tensor], masks: Sequence[torch.Tensor] | None = None
    ) -> HiddenStates:
        """Runs everything after the front end; see ``Encoder.hidden_states_from``."""
        if masks is not None and not hasattr(self._network.model, MASK_EMBEDDING):
            raise no_mask_embedding_error(self._title)
        states = self._network.hidden_states_from(features, masks)
        return self._check_frames(states, list(map(len, features)))

    def module(self) -> torch.nn.Module:
        """Returns s3prl's model; its parameter names are those of the checkpoints."""
        return self._network.model

    def _check_length(self, waves: Sequence[torch.Tensor]) -> None:
        shortest = min((wave.shape[0] for wave in waves), default=0)
        if shortest < FRAME_FIELD_SAMPLES:
            raise too_short_error(self._title, shortest)

    def _check_frames(self, states: tuple[torch.Tensor, ...], frames: list[int]) -> HiddenStates:
        assert all(state.shape[1] >= max(frames) for state in states), (
            f"{self._title} yields too few frames"
        )
        return HiddenStates(states=states, frames=torch.tensor(frames))
