"""Which frames are hidden, and what hiding them costs."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F


class MaskedLoss(NamedTuple):
    """The loss of one batch, and how many of its masked frames were named rightly (count, of how
    many)."""

    loss: torch.Tensor
    right: int
    masked: int


def start_probability(fraction: float, length: int) -> float:
    """Returns the chance of a span to start at a frame so that ``fraction`` of all frames lie in
    some span of that length.

    A frame stays visible when none of the ``length`` frames up to it starts a span: ``(1 - p) **
    length = 1 - fraction``.
    """
    return float(1 - (1 - fraction) ** (1 / length))


def spans(
    batch: int, frames: int, *, fraction: float, length: int, rng: np.random.Generator
) -> np.ndarray:
    """Returns a mask ``(batch, frames)``, true where hidden, of overlapping spans of that
    length."""
    # Starts before the first frame keep the chance of being hidden equal at every frame.
    starts = rng.random((batch, frames + length - 1)) < start_probability(fraction, length)
    reached = np.lib.stride_tricks.sliding_window_view(starts, length, axis=1)
    return np.asarray(reached.any(axis=-1))


def masked_prediction(
    model: Any,
    waves: torch.Tensor,
    targets: torch.Tensor,
    hidden: torch.Tensor,
    unmasked_weight: float,
) -> MaskedLoss:
    """Runs HuBERT on waveforms ``(batch, samples)`` with frames ``hidden`` ``(batch, frames)``
    replaced by the mask embedding.

    ``targets`` ``(batch, frames)`` int64. Logits are cosine similarities to the label embeddings
    over a temperature (HuBERT paper, equation 3); the loss is the cross-entropy at hidden frames
    plus ``unmasked_weight`` times that at visible ones (equation 2).
    """
    features = model.feature_extractor(waves).transpose(
        1, 2
    )  # (batch, dim, frames) -> (batch, frames, dim)
    features = model.layer_norm(features)
    if model.post_extract_proj is not None:
        features = model.post_extract_proj(features)
    features = torch.where(hidden[:, :, None], model.mask_emb.to(features.dtype), features)
    states, _ = model.encoder(model.dropout_input(features))
    names = F.normalize(model.label_embs_concat, dim=-1)
    logits = (
        F.linear(F.normalize(model.final_proj(states), dim=-1), names).float() / model.logit_temp
    )
    costs = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    loss = costs[hidden].mean() + unmasked_weight * costs[~hidden].mean()
    right = (logits.detach().argmax(dim=-1) == targets)[hidden].sum()
    return MaskedLoss(loss=loss, right=int(right), masked=int(hidden.sum()))
