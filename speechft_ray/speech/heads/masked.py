"""Head ``masked``: predicts the start encoder's pseudo-labels at masked frames (continued
pre-training, paper section 4.2).

The pseudo-labels are rows of HuBERT's own code book. A new linear map from the last hidden state
predicts them; HuBERT's projection and code book are not trained. Fine-tuning computes the
pseudo-labels once, before it starts.
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
    no_mask_embedding_error,
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
    """Similarity of a projected state and a code: ``cosine``, which HuBERT's predictions use
    (arXiv 2106.07447, equation 3), or the ``dot`` product, which prefers codes of large norm.
    Equation 8 of the paper is blank."""
    mask_prob: float = Field(default=0.8, gt=0, le=1)
    """Share of frames in spans if spans did not overlap: ``mask_prob / mask_length`` spans start
    per frame (0.08)."""
    mask_length: int = Field(default=10, ge=1)
    """Frames of a span. All spans have the same length and may overlap."""
    least_spans: int = Field(default=2, ge=1)
    """Least number of spans of an utterance, however short it is (``min_masks``)."""


def draw_mask(options: MaskedOptions, frames: int, generator: np.random.Generator) -> np.ndarray:
    """Returns which frames of an utterance are masked, bool ``(frames,)``.

    The rule of fairseq's ``compute_mask_indices`` for one utterance alone. In a batch, fairseq
    unmasks frames until all utterances have equally many; here a mask does not depend on the other
    utterances of a batch.
    """
    expected = options.mask_prob * frames / options.mask_length
    spans = max(options.least_spans, int(expected + generator.random()))
    starts = generator.choice(max(frames - options.mask_length, spans + 1), spans, replace=False)
    covered = (starts[:, None] + np.arange(options.mask_length)).ravel()
    mask = np.zeros(frames, dtype=bool)
    mask[covered[covered < frames]] = True
    return mask


def count_classes(start: EncoderWeights) -> int:
    """Returns the rows of the code book: 504 in HuBERT Base, 500 clusters and four specials of
    fairseq's dictionaries.

    Raises ``UserError`` when the start encoder has no code book, several, or no mask embedding.
    """
    title = FAMILIES.get(start.family).title
    codes, projection = start.state.get("label_embs_concat"), start.state.get("final_proj.weight")
    if codes is None or projection is None:
        raise UserError(
            "the head `masked` takes its targets from HuBERT's code book (`final_proj` and "
            f"`label_embs_concat`), which this {title} lacks: "
            "start from a HuBERT checkpoint that still has both."
        )
    if len(projection) != codes.shape[1]:
        raise UserError(
            f"the head `masked` needs one code book, but this {title} projects to "
            f"{len(projection)} values and its codes have {codes.shape[1]}: "
            "start from a HuBERT that was pre-trained on one set of clusters."
        )
    if MASK_EMBEDDING not in start.state:
        raise no_mask_embedding_error(title)
    return len(codes)


def compute_labels(options: MaskedOptions, model: Any, states: torch.Tensor) -> torch.Tensor:
    """Returns the code most similar to each projected state: from ``(frames, dim)`` to int64
    ``(frames,)``.

    ``model`` is the start encoder's module. The norm of a state is the same for all codes, so it is
    not divided by.
    """
    codes = model.label_embs_concat
    if model.target_glu is not None:
        codes = model.target_glu(codes)
    if options.similarity == "cosine":
        codes = functional.normalize(codes, dim=-1)
    similarity: torch.Tensor = model.final_proj(states) @ codes.T
    return similarity.argmax(dim=-1)


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
