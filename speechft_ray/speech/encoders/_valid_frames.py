"""Takes the statistics of a group norm over time from the frames of each utterance alone, so that
utterances of any lengths can be padded together.

In the front end of HuBERT, wav2vec 2.0 and WavLM this is the only place where padding reaches a
valid frame: its convolutions pad nothing, so that a frame reads samples of its own utterance only,
and the norms of Large are over channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def normalize_valid_frames(extractor: nn.Module, samples: Sequence[int]) -> Iterator[None]:
    """Replaces the group norms of a convolutional extractor during the context.

    ``samples``: the number of each utterance of the batch, before padding. An extractor without
    convolutions, such as precomputed output, is left alone.
    """
    frames, replaced = list(samples), []
    for block in getattr(extractor, "conv_layers", ()):
        (kernel,), (stride,) = block[0].kernel_size, block[0].stride
        frames = [(count - kernel) // stride + 1 for count in frames]
        for place, part in enumerate(block):
            if isinstance(part, nn.GroupNorm):
                replaced.append((block, place, part))
                block[place] = ValidFramesNorm(part, frames)
    try:
        yield
    finally:
        for block, place, part in replaced:
            block[place] = part


class ValidFramesNorm(nn.Module):
    """A group norm with one group per channel, in float32 as s3prl's, whose statistics are over the
    first ``frames`` of each utterance."""

    def __init__(self, norm: nn.GroupNorm, frames: Sequence[int]) -> None:
        super().__init__()
        self._norm, self._frames = norm, frames

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Normalises ``(batch, channels, frames)``; frames of padding get arbitrary values."""
        values = inputs.float()
        # One reduction per utterance reads its frames only. Masked sums over the whole batch would
        # read it several times, and lose digits where most of it is padding.
        statistics = [
            torch.var_mean(of_one[:, :count], dim=1, correction=0)
            for of_one, count in zip(values, self._frames, strict=True)
        ]
        variance, mean = (torch.stack(each) for each in zip(*statistics, strict=True))
        scale = self._norm.weight.float() * torch.rsqrt(variance + self._norm.eps)
        shift = self._norm.bias.float() - mean * scale  # (batch, channels)
        return torch.addcmul(shift[..., None], values, scale[..., None]).type_as(inputs)
