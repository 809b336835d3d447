"""Head ``frame``: predicts one label per frame, from the corpus' alignment (paper section 4.2:
phoneme classification on TIMIT)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from speechft_ray.core.errors import UserError
from speechft_ray.core.units import FRAME_FIELD_SAMPLES, FRAME_STRIDE_SAMPLES, frame_count
from speechft_ray.speech.corpora.base import Utterance
from speechft_ray.speech.heads.base import (
    HEADS,
    IGNORED,
    HeadKind,
    HeadOptions,
    Tally,
    count_one,
    get_label,
    valid_frame_mask,
)
from speechft_ray.speech.text import Vocabulary


def frame_labels(alignment: Sequence[tuple[int, str]], samples: int) -> list[str | None]:
    """Returns the label at the centre of every frame, sample 320 i + 200; ``None`` before the first
    start and where the label is empty."""
    starts = [start for start, _ in alignment]
    labels: list[str | None] = []
    for frame in range(frame_count(samples)):
        centre = frame * FRAME_STRIDE_SAMPLES + FRAME_FIELD_SAMPLES // 2
        segments = bisect_right(starts, centre)  # that started so far
        labels.append((alignment[segments - 1][1] or None) if segments else None)
    return labels


def cross_entropy(
    logits: torch.Tensor, frames: torch.Tensor, targets: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Cross-entropy of ``(batch, frames, classes)``, mean over all labelled frames of the batch; 0
    when there are none."""
    labels = _pad_targets(logits, frames, targets)
    total = functional.cross_entropy(
        logits.transpose(1, 2),  # -> (batch, classes, frames)
        labels,
        ignore_index=IGNORED,
        reduction="sum",
    )
    return total / (labels != IGNORED).sum().clamp(min=1)


def count_correct(
    logits: torch.Tensor, frames: torch.Tensor, targets: Sequence[torch.Tensor]
) -> Tally:
    """Counts the labelled frames whose most probable class is the label."""
    labels = _pad_targets(logits, frames, targets)
    return Tally(int((logits.argmax(dim=-1) == labels).sum()), int((labels != IGNORED).sum()))


def count_labelled_frames(target: torch.Tensor) -> int:
    """Counts the frames of a target that have a label."""
    return int((target != IGNORED).sum())


class FrameHead(nn.Module):
    """One linear map from ``dim`` to the classes, frame by frame."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.output = nn.Linear(dim, classes)

    def forward(self, features: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        """Maps ``(batch, frames, dim)`` to logits ``(batch, frames, classes)``."""
        logits: torch.Tensor = self.output(features)
        return logits


class FrameOptions(HeadOptions):
    """The head ``frame`` has no options."""


def build(options: FrameOptions, dim: int, classes: int) -> FrameHead:
    """Returns a fresh head."""
    return FrameHead(dim, classes)


def read_tokens(options: FrameOptions, utterance: Utterance, column: str) -> list[str]:
    """Returns the labels of the alignment, without empty ones.

    Raises ``UserError`` when there is no alignment, or when it aligns another column: the tokens of
    the column must occur in it (it may have more, such as silence).
    """
    if not utterance.alignment:
        raise UserError(
            f"the utterance `{utterance.key}` has no alignment, which the head `frame` needs: "
            "use the head `ctc`, which needs none, or a corpus with an alignment."
        )
    aligned = [label for _, label in utterance.alignment if label]
    foreign = sorted(set(get_label(utterance, column).split()) - set(aligned))
    if foreign:
        raise UserError(
            f"the alignment of `{utterance.key}` does not belong to the column `{column}`: "
            f"`{foreign[0]}` is not in it; name the column that is aligned."
        )
    return aligned


def make_targets(
    options: FrameOptions, utterance: Utterance, column: str, vocabulary: Vocabulary
) -> torch.Tensor:
    """Returns one class id per frame, ``IGNORED`` where nothing is labelled, shape
    ``(frames,)``."""
    tokens = read_tokens(options, utterance, column)
    ids = dict(zip(tokens, vocabulary.encode(tokens), strict=True))
    labels = frame_labels(utterance.alignment, utterance.samples)
    return torch.tensor(
        [IGNORED if label is None else ids[label] for label in labels], dtype=torch.long
    )


def _pad_targets(
    logits: torch.Tensor, frames: torch.Tensor, targets: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Pads or cuts targets to the frames of the logits, ``(batch, frames)``. Padding and frames
    beyond a target are ``IGNORED``."""
    length = logits.shape[1]
    labels = torch.full(logits.shape[:2], IGNORED, dtype=torch.long)
    for row, target in zip(labels, targets, strict=True):
        row[: min(length, len(target))] = target[:length]
    padding = ~valid_frame_mask(frames.to(logits.device), length)
    return labels.to(logits.device).masked_fill(padding, IGNORED)


HEADS.register(
    "frame",
    HeadKind(
        options=FrameOptions,
        metric="finetune.accuracy",
        reserved=0,
        croppable=False,
        read_tokens=read_tokens,
        make_targets=make_targets,
        build=build,
        loss=cross_entropy,
        tally=count_correct,
        min_frames=count_one,
        loss_weight=count_labelled_frames,
    ),
)
