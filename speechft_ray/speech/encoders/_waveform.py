"""A built network of s3prl's as the rest of the house knows an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from speechft_ray.core.errors import UserError
from speechft_ray.core.units import FRAME_FIELD_SAMPLES, frame_count
from speechft_ray.speech.encoders.base import HiddenStates, Shape


class Network(Protocol):
    """What is built from a configuration: a model, and how waveforms run through it."""

    model: torch.nn.Module

    def __call__(self, waves: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Returns the hidden states of waveforms ``(samples,)``, each ``(batch, frames, dim)``."""
        ...


class WaveformEncoder:
    """A built encoder. Hidden states: the input of each transformer layer, then the output of the encoder."""

    def __init__(self, network: Network, title: str, shape: Shape) -> None:
        self._network, self._title = network, title
        self.dim, self.state_count = shape.dim, shape.state_count

    def hidden_states(self, waves: Sequence[torch.Tensor]) -> HiddenStates:
        """Encodes waveforms, each ``(samples,)`` float32 at 16 kHz, padded together to the longest.

        With the ``default`` extractor (one GroupNorm over time, as in Base) the padding takes part in the statistics of shorter
        utterances; batches of equal length are exact. The transformer does not attend to padded frames.
        Raises ``UserError`` for an empty batch and for a waveform shorter than 400 samples.
        """
        lengths = [wave.shape[0] for wave in waves]
        if not lengths or min(lengths) < FRAME_FIELD_SAMPLES:
            raise UserError(
                f"a waveform has {min(lengths, default=0)} samples, but {self._title} needs at least "
                f"{FRAME_FIELD_SAMPLES} (25 ms at 16 kHz). Leave such recordings out."
            )
        states = self._network(waves)
        frames = torch.tensor([frame_count(length) for length in lengths])
        assert all(state.shape[1] >= int(frames.max()) for state in states), f"{self._title} yields too few frames"
        return HiddenStates(states=states, frames=frames)

    def module(self) -> torch.nn.Module:
        """s3prl's model; its parameter names are those of the checkpoints."""
        return self._network.model
