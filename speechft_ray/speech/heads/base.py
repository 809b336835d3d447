"""What a head is to fine-tuning and evaluation, and where heads register."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from speechft_ray.core.errors import SpecError
from speechft_ray.core.registry import Registry
from speechft_ray.speech.corpora.base import Utterance
from speechft_ray.speech.encoders.base import EncoderWeights

IGNORED = -100
"""Target of frames without a label: torch's default ``ignore_index``."""


class HeadOptions(BaseModel):
    """Base of all heads' options: frozen, no unknown field."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Tally(NamedTuple):
    """Counts of a part of a split; the metric is ``100 * counted / total`` of their sums over all
    parts."""

    counted: int
    """What the metric counts: right answers of an accuracy, errors of an error rate."""
    total: int


@dataclass(frozen=True, kw_only=True)
class Masking:
    """How a head learns from audio alone: some frames are masked, and what the start encoder names
    them is predicted there.

    ``mask(options, frames, draw)`` draws from a numpy generator which frames of an utterance are
    masked, bool ``(frames,)``. ``classes(start)`` says how many names an encoder at rest has.
    Raises ``UserError`` when it has none. ``names(options, module, states)`` returns its name of
    each last hidden state: ``(frames, dim)`` to int64 ``(frames,)``.
    """

    draw_mask: Callable[..., np.ndarray]
    count_classes: Callable[[EncoderWeights], int]
    compute_labels: Callable[..., torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class HeadKind:
    """A registered head, declared as data plus plain functions. ``options`` below is always an
    instance of ``options``.

    ``read_tokens(options, utterance, column)`` returns the label text of an utterance in tokens; the
    vocabulary is made of those of the train split. ``make_targets(options, utterance, column,
    vocabulary)`` returns their ids, int64 ``(length,)``. Both are None where ``masking`` is not:
    such a head has one target per frame, ``IGNORED`` where nothing is masked. ``build(options, dim,
    classes)`` returns a module ``(features (batch, frames, dim), frames (batch,)) -> logits``.
    ``loss(logits, frames, targets)`` returns a scalar, the mean over the batch; ``tally`` takes the
    same and counts.
    """

    options: type[HeadOptions]
    metric: str
    """Name in the metric table."""
    reserved: int
    """Ids in front of the vocabulary that belong to no symbol."""
    croppable: bool
    """Whether a piece of an utterance can be learned from: it has the target of the whole, or,
    masked, its own frames'."""
    read_tokens: Callable[..., list[str]] | None
    make_targets: Callable[..., torch.Tensor] | None
    masking: Masking | None = None
    """None for a head that learns from labels."""
    build: Callable[..., nn.Module]
    loss: Callable[[torch.Tensor, torch.Tensor, Sequence[torch.Tensor]], torch.Tensor]
    tally: Callable[[torch.Tensor, torch.Tensor, Sequence[torch.Tensor]], Tally]
    min_frames: Callable[[torch.Tensor], int]
    """Fewest frames that a target can be learned from."""
    loss_weight: Callable[[torch.Tensor], int]
    """What a target counts in the mean of ``loss``, so that a batch can be learned in parts."""


HEADS: Registry[HeadKind] = Registry("head", "speechft_ray.speech.heads")


def head_options(name: str, given: Mapping[str, Any]) -> HeadOptions:
    """Checks the options of a head. Raises ``UserError`` for an unknown head and ``SpecError`` with
    every mistake."""
    try:
        return HEADS.get(name).options.model_validate(dict(given))
    except ValidationError as error:
        mistakes = [
            (".".join(map(str, item["loc"])) or "options", item["msg"]) for item in error.errors()
        ]
        raise SpecError(f"the options of the head `{name}`", mistakes) from None


def get_label(utterance: Utterance, column: str) -> str:
    """Returns the text of a column that the corpus has; empty when this utterance lacks it."""
    return utterance.labels.get(column, "")


def valid_frame_mask(frames: torch.Tensor, length: int) -> torch.Tensor:
    """Returns a mask ``(batch, length)``, true where a frame belongs to its utterance."""
    return torch.arange(length, device=frames.device) < frames[:, None]


def count_one(target: torch.Tensor) -> int:
    """Returns 1: the frames that a label needs, or the units of an utterance in a mean over
    utterances."""
    return 1
