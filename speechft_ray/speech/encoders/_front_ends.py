"""Splits a network into its front end and the rest, which can run on precomputed front-end output.

s3prl's forward pass is not changed. During one call a stand-in replaces the front end, and the
padding mask of frames is set exactly: from a padding mask of samples, s3prl computes one frame too
many for the shorter utterances of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from speechft_ray.core.units import FRAME_FIELD_SAMPLES, FRAME_STRIDE_SAMPLES, frame_count
from speechft_ray.speech.encoders._valid_frames import normalize_valid_frames
from speechft_ray.speech.encoders.base import MASK_EMBEDDING


class FrontEnd(Protocol):
    """The first part of a network."""

    def __call__(self, waves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Maps waveforms ``(samples,)`` of any lengths to ``(frames, channels)`` each, none of
        which depends on the other waveforms."""
        ...

    def replace(
        self, features: Sequence[torch.Tensor]
    ) -> AbstractContextManager[list[torch.Tensor]]:
        """Yields inputs for which the network computes the hidden states of these front-end
        outputs, each ``(frames, channels)``."""
        ...


class Convolutions:
    """The learned front end of HuBERT, wav2vec 2.0 and WavLM."""

    def __init__(self, model: nn.Module, normalize: bool) -> None:
        self._model: Any = model
        self._normalize = normalize

    def __call__(self, waves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Normalises each waveform first, where the configuration says so, and pads them
        together."""
        if self._normalize:
            waves = [nn.functional.layer_norm(wave, wave.shape) for wave in waves]
        samples, extractor = [len(wave) for wave in waves], self._model.feature_extractor
        with (
            nullcontext() if len(set(samples)) == 1 else normalize_valid_frames(extractor, samples)
        ):
            features = extractor(pad_sequence(list(waves), batch_first=True))
        # (batch, channels, frames) -> (frames, channels) each
        return [
            output[: frame_count(count)]
            for output, count in zip(features.transpose(1, 2), samples, strict=True)
        ]

    @contextmanager
    def replace(self, features: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
        """Yields zeros, for each output as few samples as yield that many frames.

        wav2vec 2.0 computes the number of frames from them exactly. HuBERT and WavLM compute one
        too many for most shorter utterances, so their padding mask is replaced.
        """
        model = self._model
        extractor = model.feature_extractor
        padding = pad_sequence(
            [output.new_zeros(len(output), dtype=torch.bool) for output in features],
            batch_first=True,
            padding_value=True,
        )
        hooks = [
            block.register_forward_pre_hook(_zero_padding_hook(padding))
            for block in _positional_blocks(model)
        ]
        model.feature_extractor = PrecomputedOutput(
            pad_sequence(list(features), batch_first=True).transpose(1, 2)
        )
        if hasattr(model, "forward_padding_mask"):
            model.forward_padding_mask = lambda features, mask: padding
        try:
            yield [
                output.new_zeros(FRAME_FIELD_SAMPLES + FRAME_STRIDE_SAMPLES * (len(output) - 1))
                for output in features
            ]
        finally:
            model.feature_extractor = extractor
            vars(model).pop("forward_padding_mask", None)  # uncovers the method of its class
            for hook in hooks:
                hook.remove()


class FilterBank:
    """The filter bank of DeCoAR 2.0, whose padding mask of frames is exact."""

    def __init__(self, windows: Callable[[torch.Tensor], torch.Tensor], bands: int) -> None:
        self._windows, self._bands = windows, bands

    def preprocessor(self, wave: torch.Tensor) -> torch.Tensor:
        """Maps a waveform ``(1, samples)`` to ``(frames, bands)``. Energies ``(1, frames, bands)``
        pass unchanged."""
        if wave.ndim == 3:
            return wave[0]
        if wave.shape[1] < FRAME_FIELD_SAMPLES + FRAME_STRIDE_SAMPLES // 2:
            # One window of 10 ms has no variance over time. s3prl divides by it and returns NaN;
            # the window less its mean is zero.
            return wave.new_zeros(1, self._bands)
        with torch.autocast(wave.device.type, enabled=False):  # logarithms need all digits
            return self._windows(wave)

    def __call__(self, waves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Computes and normalises each utterance by itself."""
        return [self.preprocessor(wave[None]) for wave in waves]

    def replace(
        self, features: Sequence[torch.Tensor]
    ) -> AbstractContextManager[list[torch.Tensor]]:
        """Yields the energies themselves: ``preprocessor`` recognises them by their shape."""
        return nullcontext(list(features))


@contextmanager
def apply_masks(model: Any, masks: Sequence[torch.Tensor] | None) -> Iterator[None]:
    """Replaces masked frames by the mask embedding during the context. ``masks``: one bool
    ``(frames,)`` per utterance.

    All three families with an embedding mask the output of ``dropout_input``.
    """
    if masks is None:
        yield
        return
    embedding = getattr(model, MASK_EMBEDDING)
    mask = pad_sequence(list(masks), batch_first=True)[:, :, None].to(embedding.device)

    def replace(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return torch.where(mask, embedding.to(output.dtype), output)

    hook = model.dropout_input.register_forward_hook(replace)
    try:
        yield
    finally:
        hook.remove()


class PrecomputedOutput(nn.Module):
    """Returns the same output for every input, in the place of a front end."""

    def __init__(self, output: torch.Tensor) -> None:
        super().__init__()
        self._output = output

    def forward(self, waves: torch.Tensor) -> torch.Tensor:
        return self._output


def _positional_blocks(model: Any) -> list[nn.Module]:
    """Returns the blocks of a positional convolution of several layers (``pos_conv_depth``). None
    for a single layer, whose input s3prl sets to zero at padded frames itself."""
    return [block for block in model.encoder.pos_conv if isinstance(block, nn.Sequential)]


def _zero_padding_hook(padding: torch.Tensor) -> Callable[[nn.Module, Any], torch.Tensor]:
    """Returns a hook that sets padded frames of a block's input ``(batch, channels, frames)`` to
    zero. After the first block they are its biases, which the next one would mix into valid
    frames."""
    return lambda block, inputs: inputs[0].masked_fill(padding[:, None], 0.0)
