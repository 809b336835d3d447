"""Defines what a head declares, and the registry of heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from speechft_ray.core.registry import Registry
from speechft_ray.core.validation import validate
from speechft_ray.speech.corpora.base import Utterance
from speechft_ray.speech.encoders.base import EncoderWeights

IGNORED = -100
"""Target of frames without a label: torch's default ``ignore_index``."""


class HeadOptions(BaseModel):
    """Base of all heads' options: frozen, no unknown field."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Tally(NamedTuple):
    """Counts of a part of a split. The metric is ``100 * counted / total`` of their sums over all
    parts."""

    counted: int
    """What the metric counts: correct predictions of an accuracy, errors of an error rate."""
    total: int


@dataclass(frozen=True, kw_only=True)
class Masking:
    """How a head learns without labels: some frames are masked, and the head predicts there the
    pseudo-labels that the start encoder assigns.

    ``draw_mask(options, frames, generator)`` draws from a numpy generator which frames of an
    utterance are masked, bool ``(frames,)``. ``count_classes(start)`` returns the number of
    pseudo-labels that these weights have, and raises ``UserError`` when they have none.
    ``compute_labels(options, module, states)`` returns the pseudo-label of each last hidden state:
    from ``(frames, dim)`` to int64 ``(frames,)``.
    """

    draw_mask: Callable[..., np.ndarray]
    count_classes: Callable[[EncoderWeights], int]
    compute_labels: Callable[..., torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class HeadKind:
    """A registered head, declared as data plus plain functions.

    The argument ``options`` below is always an instance of the field ``options``.

    ``read_tokens(options, utterance, column)`` returns the tokens of an utterance's label. The
    vocabulary holds those of the train split. ``make_targets(options, utterance, column,
    vocabulary)`` returns their ids, int64 ``(length,)``. Both are None where ``masking`` is set:
    such a head has one target per frame, ``IGNORED`` where the frame is not masked.
    ``build(options, dim, classes)`` returns a module ``(features (batch, frames, dim), frames
    (batch,)) -> logits``. ``loss(logits, frames, targets)`` returns a scalar, the mean over the
    batch. ``tally`` takes the same arguments and counts.
    """

    options: type[HeadOptions]
    metric: str
    """Name in the metric table."""
    reserved: int
    """Ids in front of the vocabulary that belong to no symbol."""
    croppable: bool
    """Whether a crop of an utterance can be trained on: it has the target of the whole utterance,
    or, with ``masking``, those of its own frames."""
    read_tokens: Callable[..., list[str]] | None
    make_targets: Callable[..., torch.Tensor] | None
    masking: Masking | None = None
    """None for a head that is trained on labels."""
    build: Callable[..., nn.Module]
    loss: Callable[[torch.Tensor, torch.Tensor, Sequence[torch.Tensor]], torch.Tensor]
    tally: Callable[[torch.Tensor, torch.Tensor, Sequence[torch.Tensor]], Tally]
    min_frames: Callable[[torch.Tensor], int]
    """Fewest frames that a target can be trained on."""
    has_unknown: bool = False
    """Whether dev may have tokens that train lacks: they are always errors (s3prl's ``<unk>``).
    Other heads know a closed set of classes, and such a corpus is refused."""
    loss_weight: Callable[[torch.Tensor], int]
    """Weight of a target in the mean of ``loss``, so that a batch can be processed in parts."""
    version: int = 1
    """Raised when the head's results change.

    It is part of the identity of runs that use the head, only where it is not 1, so that version 1
    keeps older fingerprints.
    """


HEADS: Registry[HeadKind] = Registry("head", "speechft_ray.speech.heads")


def check_head_options(name: str, options: Mapping[str, Any]) -> HeadOptions:
    """Returns the validated options of a head.

    Raises ``UserError`` for an unknown head and ``SpecError`` with every mistake in the options.
    """
    return validate(HEADS.get(name).options, dict(options), f"the options of the head `{name}`")


def get_label(utterance: Utterance, column: str) -> str:
    """Returns an utterance's label in a column of its corpus; empty when it has none."""
    return utterance.labels.get(column, "")


def valid_frame_mask(frames: torch.Tensor, length: int) -> torch.Tensor:
    """Returns a mask ``(batch, length)``, true where a frame belongs to its utterance."""
    return torch.arange(length, device=frames.device) < frames[:, None]


def count_one(target: torch.Tensor) -> int:
    """Returns 1: the frames that a label needs, or the weight of an utterance in a mean over
    utterances."""
    return 1
