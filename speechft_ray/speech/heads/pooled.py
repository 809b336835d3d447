"""Head ``pooled``: predicts one label per utterance from the mean over its frames."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from speechft_ray.speech.corpora.base import Utterance
from speechft_ray.speech.corpora.labels import MissingLabelError
from speechft_ray.speech.heads.base import (
    HEADS,
    HeadKind,
    HeadOptions,
    Tally,
    count_one,
    get_label,
    valid_frame_mask,
)
from speechft_ray.speech.text import Vocabulary

PROJECTION = 256
"""Width between the two linear maps (s3prl ``emotion/config.yaml``, ``voxceleb1/config.yaml``:
``projector_dim``)."""


def mean_over_frames(features: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """Averages ``(batch, frames, dim)`` over each utterance's own frames to ``(batch, dim)``."""
    mask = valid_frame_mask(frames.to(features.device), features.shape[1]).unsqueeze(-1)
    return features.masked_fill(~mask, 0.0).sum(dim=1) / mask.sum(dim=1)


def cross_entropy(
    logits: torch.Tensor, frames: torch.Tensor, targets: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Cross-entropy of ``(batch, classes)``, mean over the batch. Each target has shape
    ``(1,)``."""
    return functional.cross_entropy(logits, torch.cat(list(targets)).to(logits.device))


def count_correct(
    logits: torch.Tensor, frames: torch.Tensor, targets: Sequence[torch.Tensor]
) -> Tally:
    """Counts the utterances whose most probable class is the label."""
    labels = torch.cat(list(targets)).to(logits.device)
    return Tally(int((logits.argmax(dim=-1) == labels).sum()), len(labels))


class PooledHead(nn.Module):
    """Linear to ``projection``, mean over frames, linear to the classes, without a non-linearity
    (s3prl ``UtteranceLevel``).

    The mean is computed first: it commutes with the first map and costs less there.
    """

    def __init__(self, dim: int, classes: int, projection: int = PROJECTION) -> None:
        super().__init__()
        self.projector = nn.Linear(dim, projection)
        self.output = nn.Linear(projection, classes)

    def forward(self, features: torch.Tensor, frames: torch.Tensor | None = None) -> torch.Tensor:
        """Maps ``(batch, frames, dim)`` and ``frames`` ``(batch,)``, or means ``(batch, dim)``
        alone, to logits by class."""
        means = features if frames is None else mean_over_frames(features, frames)
        logits: torch.Tensor = self.output(self.projector(means))
        return logits


class PooledOptions(HeadOptions):
    """Options of the head ``pooled``."""

    projection: int = Field(default=PROJECTION, ge=1)


def build(options: PooledOptions, dim: int, classes: int) -> PooledHead:
    """Returns a fresh head."""
    return PooledHead(dim, classes, options.projection)


def read_tokens(options: PooledOptions, utterance: Utterance, column: str) -> list[str]:
    """Returns the whole label as one token. Raises ``UserError`` when it is empty."""
    label = get_label(utterance, column).strip()
    if not label:
        raise MissingLabelError(utterance, column)
    return [label]


def make_targets(
    options: PooledOptions, utterance: Utterance, column: str, vocabulary: Vocabulary
) -> torch.Tensor:
    """Returns the class id, shape ``(1,)``."""
    return torch.tensor(vocabulary.encode(read_tokens(options, utterance, column)))


HEADS.register(
    "pooled",
    HeadKind(
        options=PooledOptions,
        metric="finetune.accuracy",
        reserved=0,
        croppable=True,
        read_tokens=read_tokens,
        make_targets=make_targets,
        build=build,
        loss=cross_entropy,
        tally=count_correct,
        min_frames=count_one,
        loss_weight=count_one,
    ),
)
