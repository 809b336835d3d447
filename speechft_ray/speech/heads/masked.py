"""Head ``masked``: at masked frames, what the start encoder names them (continued pre-training,
paper section 4.2).

The names come from HuBERT's own code book; a new linear map from the last hidden state learns them,
and neither HuBERT's projection nor its code book takes part. What the start names is worked out
once, by whoever fine-tunes.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch.nn import functional

from speechft_ray.core.errors import UserError
from speechft_ray.speech.encoders.base import (
    FAMILIES,
    MASK_EMBEDDING,
    EncoderWeights,
    no_mask_embedding,
)
from speechft_ray.speech.heads.base import HEADS, HeadKind, HeadOptions, Masking, count_one
from speechft_ray.speech.heads.frame import (
    FrameHead,
    count_correct,
    count_labelled_frames,
    cross_entropy,
)


class MaskedOptions(HeadOptions):
    """Options of the head ``masked``. Masks are HuBERT's (fairseq ``hubert_base_librispeech.yaml``,
    ``HubertConfig``)."""

    similarity: Literal["cosine", "dot"] = "cosine"
    """How alike a projected state and a code are: ``cosine``, the rule that HuBERT predicts by
    (arXiv 2106.07447, equation 3), or their ``dot`` product, which prefers long codes. Equation 8
    of the paper is blank."""
    mask_prob: float = Field(default=0.8, gt=0, le=1)
    """Share of frames in spans if spans did not overlap: ``mask_prob / mask_length`` spans start
    per frame (0.08)."""
    mask_length: int = Field(default=10, ge=1)
    """Frames of a span; all have the same length and may overlap."""
    least_spans: int = Field(default=2, ge=1)
    """Spans of an utterance, however short (``min_masks``)."""


def draw_mask(options: MaskedOptions, frames: int, draw: np.random.Generator) -> np.ndarray:
    """Returns which frames of an utterance are masked, bool ``(frames,)``.

    The rule of fairseq's ``compute_mask_indices`` for one utterance alone. In a batch, fairseq
    unmasks frames until all utterances have equally many; here a mask does not depend on the
    company that an utterance keeps.
    """
    spans = max(
        options.least_spans, int(options.mask_prob * frames / options.mask_length + draw.random())
    )
    starts = draw.choice(max(frames - options.mask_length, spans + 1), spans, replace=False)
    reached = (starts[:, None] + np.arange(options.mask_length)).ravel()
    masked = np.zeros(frames, dtype=bool)
    masked[reached[reached < frames]] = True
    return masked


def count_classes(start: EncoderWeights) -> int:
    """Returns the rows of the code book: 504 in HuBERT Base, 500 clusters and four specials of
    fairseq's dictionaries.

    Raises ``UserError`` when the start cannot name frames, or cannot have them masked.
    """
    title = FAMILIES.get(start.family).title
    codes, projection = start.state.get("label_embs_concat"), start.state.get("final_proj.weight")
    if codes is None or projection is None:
        raise UserError(
            f"the head `masked` takes its targets from HuBERT's code book (`final_proj` and `label_embs_concat`), which this "
            f"{title} lacks: start from a HuBERT checkpoint that still has both."
        )
    if len(projection) != codes.shape[1]:
        raise UserError(
            f"the head `masked` needs one code book, but this {title} projects to {len(projection)} values and its codes have "
            f"{codes.shape[1]}: start from a HuBERT that was pre-trained on one set of clusters."
        )
    if MASK_EMBEDDING not in start.state:
        raise no_mask_embedding(title)
    return len(codes)


def compute_labels(options: MaskedOptions, model: Any, states: torch.Tensor) -> torch.Tensor:
    """Returns the code most similar to each projected state: from ``(frames, dim)`` to int64
    ``(frames,)``.

    ``model`` is the start encoder's module. A state's own length is the same towards all codes, so
    it is left out.
    """
    codes = model.label_embs_concat
    if model.target_glu is not None:
        codes = model.target_glu(codes)
    if options.similarity == "cosine":
        codes = functional.normalize(codes, dim=-1)
    alike: torch.Tensor = model.final_proj(states) @ codes.T
    return alike.argmax(dim=-1)


def build(options: MaskedOptions, dim: int, classes: int) -> FrameHead:
    """Returns a fresh linear map to as many classes as the code book has rows."""
    return FrameHead(dim, classes)


HEADS.register(
    "masked",
    HeadKind(
        options=MaskedOptions,
        metric="finetune.masked_accuracy",
        reserved=0,
        croppable=True,
        read_tokens=None,
        make_targets=None,
        masking=Masking(
            draw_mask=draw_mask, count_classes=count_classes, compute_labels=compute_labels
        ),
        build=build,
        loss=cross_entropy,
        tally=count_correct,
        min_frames=count_one,
        loss_weight=count_labelled_frames,
    ),
)
