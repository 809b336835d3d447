"""Where a network is cut in two: its front end, and how the rest of it runs on what a front end
said earlier.

s3prl's forward pass stays as it is. For the length of one call a stand-in takes the place of the
front end, and the padding of frames is told exactly: from a padding of samples, s3prl gives the
shorter utterances of a batch a frame that is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from speechft_ray.core.units import FRAME_FIELD_SAMPLES, FRAME_STRIDE_SAMPLES
from speechft_ray.speech.encoders.base import MASK_EMBEDDING


class FrontEnd(Protocol):
    """The first part of a network, on waveforms that need no padding."""

    def __call__(self, waves: torch.Tensor) -> torch.Tensor:
        """From ``(batch, samples)`` to ``(batch, frames, channels)``."""
        ...

    def given(self, fronts: Sequence[torch.Tensor]) -> AbstractContextManager[list[torch.Tensor]]:
        """A context yielding what the network takes for waveforms and encodes as these outputs,
        each ``(frames, channels)``."""
        ...


class Convolutions:
    """The learned front end of HuBERT, wav2vec 2.0 and WavLM."""

    def __init__(self, model: nn.Module, normalize: bool) -> None:
        self._model: Any = model
        self._extractor: Any = model.feature_extractor
        self._normalize = normalize

    def __call__(self, waves: torch.Tensor) -> torch.Tensor:
        """Waveforms are normalised first, each by itself, where the encoder asks for it."""
        if self._normalize:
            waves = nn.functional.layer_norm(waves, waves.shape[1:])
        features: torch.Tensor = self._extractor(waves)  # (batch, channels, frames)
        return features.transpose(1, 2)

    @contextmanager
    def given(self, fronts: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
        """Yields silence of the least samples that make so many frames: wav2vec 2.0 counts frames
        from samples, exactly.

        HuBERT and WavLM, whose own count is one too high for most shorter utterances, get it said
        to them.
        """
        model = self._model
        padding = pad_sequence(
            [front.new_zeros(len(front), dtype=torch.bool) for front in fronts],
            batch_first=True,
            padding_value=True,
        )
        hooks = [
            block.register_forward_pre_hook(_silencing(padding))
            for block in _position_blocks(model)
        ]
        model.feature_extractor = Given(
            pad_sequence(list(fronts), batch_first=True).transpose(1, 2)
        )
        if hasattr(model, "forward_padding_mask"):
            model.forward_padding_mask = lambda features, mask: padding
        try:
            yield [
                front.new_zeros(FRAME_FIELD_SAMPLES + FRAME_STRIDE_SAMPLES * (len(front) - 1))
                for front in fronts
            ]
        finally:
            model.feature_extractor = self._extractor
            vars(model).pop("forward_padding_mask", None)  # the method of its class again
            for hook in hooks:
                hook.remove()


class FilterBank:
    """The fixed front end of DeCoAR 2.0, whose frame padding is exact as it is."""

    def __init__(self, windows: Callable[[torch.Tensor], torch.Tensor], bands: int) -> None:
        self._windows, self._bands = windows, bands

    def preprocessor(self, wave: torch.Tensor) -> torch.Tensor:
        """From a waveform ``(1, samples)`` to ``(frames, bands)``; energies ``(1, frames, bands)``
        come through as they are."""
        if wave.ndim == 3:
            return wave[0]
        if wave.shape[1] < FRAME_FIELD_SAMPLES + FRAME_STRIDE_SAMPLES // 2:
            # One window of 10 ms has no variance over time: s3prl divides by it and gets NaN. Less
            # its mean, it is zero.
            return wave.new_zeros(1, self._bands)
        return self._windows(wave)

    def __call__(self, waves: torch.Tensor) -> torch.Tensor:
        """Each utterance is normalised by itself."""
        return torch.stack([self.preprocessor(wave[None]) for wave in waves])

    def given(self, fronts: Sequence[torch.Tensor]) -> AbstractContextManager[list[torch.Tensor]]:
        """Yields the energies themselves: ``preprocessor`` knows them by their shape."""
        return nullcontext(list(fronts))


@contextmanager
def mask_embedding_at(model: Any, masked: Sequence[torch.Tensor] | None) -> Iterator[None]:
    """Lets the mask embedding stand at masked frames, given as one bool ``(frames,)`` per
    utterance.

    All three families with an embedding mask what ``dropout_input`` returns.
    """
    if masked is None:
        yield
        return
    embedding = getattr(model, MASK_EMBEDDING)
    places = pad_sequence(list(masked), batch_first=True)[:, :, None].to(embedding.device)

    def replace(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return torch.where(places, embedding.to(output.dtype), output)

    hook = model.dropout_input.register_forward_hook(replace)
    try:
        yield
    finally:
        hook.remove()


class Given(nn.Module):
    """Stands in for a front end whose output is known."""

    def __init__(self, output: torch.Tensor) -> None:
        super().__init__()
        self._output = output

    def forward(self, waves: torch.Tensor) -> torch.Tensor:
        return self._output


def _position_blocks(model: Any) -> list[nn.Module]:
    """The blocks of a positional convolution of several layers (``pos_conv_depth``); none where it
    is one layer, whose input s3prl silences at padded frames itself."""
    return [block for block in model.encoder.pos_conv if isinstance(block, nn.Sequential)]


def _silencing(padding: torch.Tensor) -> Callable[[nn.Module, Any], torch.Tensor]:
    """Biases make padded frames speak after the first block, and the next one would carry that into
    valid frames."""
    return lambda block, inputs: inputs[0].masked_fill(
        padding[:, None], 0.0
    )  # (batch, channels, frames)
