"""The head of speaker verification: an x-vector after a projection, and cosines to the training
speakers (s3prl ``sv_voxceleb1/model.py``)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from speechft_ray.speech.heads.base import valid_frame_mask

CONTEXTS = ((5, 1), (3, 2), (3, 3), (1, 1), (1, 1))
"""Kernel size and dilation of each layer (s3prl ``XVector``)."""

LOST_FRAMES = sum((size - 1) * dilation for size, dilation in CONTEXTS)
"""14: a layer has no output where its kernel would reach beyond the utterance."""

SCALE, MARGIN = 30.0, 0.4
"""Additive margin softmax (s3prl ``sv_voxceleb1/configs/amsoftmax.yaml``: ``s``, ``m``)."""


class XVectorHead(nn.Module):
    """Linear to ``width``, five dilated layers with ReLU, mean and deviation over frames, two
    linear maps with ReLU.

    ``pools_padding``: while training, an utterance that is not the longest of its batch is pooled
    over one frame of padding too, because s3prl's mask ends one frame late.
    """

    def __init__(
        self,
        dim: int,
        speakers: int,
        width: int = 512,
        pooled_width: int = 1500,
        pools_padding: bool = True,
    ) -> None:
        super().__init__()
        self.width, self.pools_padding = width, pools_padding
        self.connector = nn.Linear(dim, width)
        outputs = (width, width, width, width, pooled_width)
        self.layers = nn.ModuleList(
            nn.Conv1d(width, output, size, dilation=dilation)
            for output, (size, dilation) in zip(outputs, CONTEXTS, strict=True)
        )
        self.embedding, self.second = nn.Linear(2 * pooled_width, width), nn.Linear(width, width)
        self.speakers = nn.Parameter(torch.empty(width, speakers))
        nn.init.xavier_normal_(self.speakers)

    def forward(self, features: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        """Maps ``(batch, frames, dim)`` to ``(batch, width + speakers)``.

        The first ``width`` are the embedding, the output of the first of the last two maps,
        normalised to length 1. The others are the cosines, within [-1, 1], of the second map's
        output and each training speaker. At least 16 frames are needed.
        """
        hidden = self.connector(features).transpose(1, 2)  # -> (batch, width, frames)
        for layer in self.layers:
            hidden = functional.relu(layer(hidden))
        pooled = self._pool(hidden, frames.to(hidden.device) - LOST_FRAMES)
        embedding = functional.relu(self.embedding(pooled))
        speaker = functional.normalize(functional.relu(self.second(embedding)), dim=1)
        cosines = speaker @ functional.normalize(self.speakers, dim=0)
        return torch.cat([functional.normalize(embedding, dim=1), cosines], dim=1)

    def _pool(self, hidden: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        """Returns mean and unbiased deviation over frames of ``(batch, width, frames)``, side by
        side."""
        if self.training and self.pools_padding:
            frames = (frames + 1).clamp(max=hidden.shape[2])
        inside = valid_frame_mask(frames, hidden.shape[2])[:, None]
        mean = hidden.masked_fill(~inside, 0.0).sum(2) / frames[:, None]
        squares = (hidden - mean[:, :, None]).masked_fill(~inside, 0.0).square().sum(2)
        return torch.cat([mean, _root(squares / (frames[:, None] - 1))], dim=1)


def _root(values: torch.Tensor) -> torch.Tensor:
    """Square root whose gradient at 0, where a channel is constant, is 0, like that of torch's
    ``std``."""
    zero = values == 0
    return values.masked_fill(zero, 1.0).sqrt().masked_fill(zero, 0.0)


def am_softmax(
    cosines: torch.Tensor, frames: torch.Tensor, targets: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Additive margin softmax of ``(batch, speakers)`` (Wang et al. 2018), mean over the batch.
    Targets have shape ``(1,)``."""
    labels = torch.cat(list(targets)).to(cosines.device)
    margin = functional.one_hot(labels, cosines.shape[1]) * MARGIN
    return functional.cross_entropy(SCALE * (cosines - margin), labels)
