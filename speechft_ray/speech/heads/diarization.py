"""The head of diarisation: predicts which of a fixed number of speakers are active in each frame
(s3prl ``diarization/``)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from speechft_ray.speech.heads.base import valid_frame_mask


class DiarizationHead(nn.Module):
    """One LSTM layer forward in time and a linear map to the speakers; no projection before it.

    Labels have one frame more than features, because the receptive field of the encoder does not
    fit into the last one. So the last frame of each utterance is repeated (s3prl
    ``diarization/expert.py``: ``_match_length``, at a batch of one).
    """

    def __init__(self, dim: int, speakers: int, hidden: int = 512) -> None:
        super().__init__()
        self.rnn = nn.LSTM(dim, hidden, batch_first=True)
        self.linear = nn.Linear(hidden, speakers)

    def forward(self, features: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        """Maps ``(batch, frames, dim)`` to logits ``(batch, frames + 1, speakers)``, of which
        ``frames + 1`` are valid in each utterance."""
        # The last position of each utterance comes twice: (batch, frames + 1).
        last = frames.to(features.device)[:, None] - 1
        positions = torch.arange(features.shape[1] + 1, device=features.device).minimum(last)
        repeated = features.gather(1, positions[:, :, None].expand(-1, -1, features.shape[2]))
        logits: torch.Tensor = self.linear(self.rnn(repeated)[0])
        return logits


def permutation_losses(
    logits: torch.Tensor, targets: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the loss of each order of the speakers, ``(batch, orders)``, and the frames compared,
    ``(batch,)``.

    ``logits`` ``(batch, frames, speakers)``, each target ``(frames of it, speakers)`` of 0 and 1.
    Binary cross-entropy, mean over speakers, sum over the frames that both have.
    """
    length, speakers = logits.shape[1:]
    frames = torch.tensor([min(len(target), length) for target in targets], device=logits.device)
    labels = pad_sequence([target[:length] for target in targets], batch_first=True).to(logits)
    logits = logits[:, : labels.shape[1]]
    inside = valid_frame_mask(frames, labels.shape[1])
    losses = []
    for order in permutations(range(speakers)):
        each = functional.binary_cross_entropy_with_logits(
            logits, labels[:, :, list(order)], reduction="none"
        ).mean(dim=2)
        losses.append((each * inside).sum(dim=1))
    return torch.stack(losses, dim=1), frames


def permutation_free_loss(
    logits: torch.Tensor, frames: torch.Tensor, targets: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Returns the loss of the best order of the speakers in each utterance, over all frames of the
    batch."""
    losses, counted = permutation_losses(logits, targets)
    return losses.min(dim=1).values.sum() / counted.sum()
