"""Span masks and the loss of masked prediction."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F


class MaskedLoss(NamedTuple):
    """Loss and accuracy counts of one batch."""

    loss: torch.Tensor
    correct: int
    """Masked frames whose most likely label is their target."""
    masked: int
    """Masked frames."""


def start_probability(fraction: float, length: int) -> float:
    """Returns the probability of a span to start at a frame, so that ``fraction`` of all frames lie
    in some span of that length.

    A frame stays unmasked when none of the ``length`` frames up to it starts a span: ``(1 - p) **
    length = 1 - fraction``.
    """
    return float(1 - (1 - fraction) ** (1 / length))


def draw_span_mask(
    batch: int, frames: int, *, fraction: float, length: int, rng: np.random.Generator
) -> np.ndarray:
    """Draws a mask ``(batch, frames)``, true where masked, of overlapping spans of that length."""
    # Starts before the first frame make the probability of being masked equal at every frame.
    starts = rng.random((batch, frames + length - 1)) < start_probability(fraction, length)
    windows = np.lib.stride_tricks.sliding_window_view(starts, length, axis=1)
    return np.asarray(windows.any(axis=-1))


def compute_masked_loss(
    model: Any,
    waves: torch.Tensor,
    targets: torch.Tensor,
    mask: torch.Tensor,
    unmasked_weight: float,
) -> MaskedLoss:
    """Returns the loss of HuBERT on waveforms ``(batch, samples)``.

    ``mask`` ``(batch, frames)``: frames that the mask embedding replaces. ``targets`` ``(batch,
    frames)`` int64. Logits are cosine similarities to the label embeddings over a temperature
    (HuBERT paper, equation 3). The loss is the cross-entropy at masked frames plus
    ``unmasked_weight`` times that at unmasked ones (equation 2).
    """
    features = model.feature_extractor(waves)  # (batch, dim, frames)
    features = model.layer_norm(features.transpose(1, 2))
    if model.post_extract_proj is not None:
        features = model.post_extract_proj(features)
    features = torch.where(mask[:, :, None], model.mask_emb.to(features.dtype), features)
    states, _ = model.encoder(model.dropout_input(features))
    codes = F.normalize(model.label_embs_concat, dim=-1)
    similarities = F.linear(F.normalize(model.final_proj(states), dim=-1), codes)
    logits = similarities.float() / model.logit_temp
    losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    loss = losses[mask].mean() + unmasked_weight * losses[~mask].mean()
    correct = (logits.detach().argmax(dim=-1) == targets)[mask].sum()
    return MaskedLoss(loss=loss, correct=int(correct), masked=int(mask.sum()))
