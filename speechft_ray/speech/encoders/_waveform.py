"""A built network of s3prl's as the rest of the house knows an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from speechft_ray.core.units import FRAME_FIELD_SAMPLES, frame_count
from speechft_ray.speech.encoders.base import (
    MASK_EMBEDDING,
    HiddenStates,
    Shape,
    no_mask_embedding,
    too_short,
)


class Network(Protocol):
    """What is built from a configuration: a model, and how waveforms run through it."""

    model: torch.nn.Module

    def __call__(self, waves: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Returns the hidden states of waveforms ``(samples,)``, each ``(batch, frames, dim)``."""
        ...

    def conv_features(self, waves: Sequence[torch.Tensor]) -> torch.Tensor:
        """Returns what the front end says of waveforms of equal length: ``(batch, frames,
        channels)``, float32."""
        ...

    def states_of(
        self, fronts: Sequence[torch.Tensor], masked: Sequence[torch.Tensor] | None
    ) -> tuple[torch.Tensor, ...]:
        """Returns hidden states as a call does, from outputs of ``front``, each ``(frames,
        channels)``."""
        ...


class WaveformEncoder:
    """A built encoder. Hidden states: the input of each transformer layer, then the output of the
    encoder."""

    def __init__(self, network: Network, title: str, shape: Shape) -> None:
        self._network, self._title = network, title
        self.dim, self.state_count = shape.dim, shape.state_count

    def hidden_states(self, waves: Sequence[torch.Tensor]) -> HiddenStates:
        """Encodes waveforms, each ``(samples,)`` float32 at 16 kHz, padded together to the longest.

        With the ``default`` extractor (one GroupNorm over time, as in Base) the padding takes part
        in the statistics of shorter utterances; batches of equal length are exact. The transformer
        does not attend to padded frames. Raises ``UserError`` for an empty batch and for a waveform
        shorter than 400 samples.
        """
        self._check(waves)
        return self._found(self._network(waves), [frame_count(wave.shape[0]) for wave in waves])

    def conv_features(self, waves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Runs the front end alone; see ``Encoder.front``. Where it learns, gradient reaches it
        through what is returned."""
        self._check(waves)
        return list(self._network.conv_features(waves))

    def hidden_states_from(
        self, fronts: Sequence[torch.Tensor], masked: Sequence[torch.Tensor] | None = None
    ) -> HiddenStates:
        """Runs everything behind the front end; see ``Encoder.hidden_states_from``."""
        if masked is not None and not hasattr(self._network.model, MASK_EMBEDDING):
            raise no_mask_embedding(self._title)
        return self._found(
            self._network.states_of(fronts, masked), [len(front) for front in fronts]
        )

    def module(self) -> torch.nn.Module:
        """s3prl's model; its parameter names are those of the checkpoints."""
        return self._network.model

    def _check(self, waves: Sequence[torch.Tensor]) -> None:
        shortest = min((wave.shape[0] for wave in waves), default=0)
        if shortest < FRAME_FIELD_SAMPLES:
            raise too_short(self._title, shortest)

    def _found(self, states: tuple[torch.Tensor, ...], frames: list[int]) -> HiddenStates:
        assert all(state.shape[1] >= max(frames) for state in states), (
            f"{self._title} yields too few frames"
        )
        return HiddenStates(states=states, frames=torch.tensor(frames))
