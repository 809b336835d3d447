"""The probe: a weighted sum over hidden states and a head; and the schedule of its training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from speechft_ray.speech.heads.featurizer import Featurizer
from speechft_ray.superb.extractor import Batch
from speechft_ray.superb.tasks.base import Sampling


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How a probe is trained."""

    updates: int
    validate_every_updates: int
    learning_rate: float
    batch_size: int
    """Utterances in one batch; an update takes ``accumulate`` batches."""
    clip_norm: float
    sampling: Sampling
    metric: str
    """Selects the best validation, unless ``TaskData`` has a ``select``."""
    accumulate: int = 1
    weight_decay: float = 0.0
    patience: int | None = None
    """Validations without improvement after which the training of a probe ends; ``None``: it takes
    all updates."""
    pause_at: int | None = None
    """The update at which training pauses. Its saved state goes on to the same end as a training
    that did not pause. ``None``: it does not pause."""

    @property
    def stop(self) -> int:
        """The update after which no other is made now."""
        return self.updates if self.pause_at is None else min(self.pause_at, self.updates)


@dataclass(frozen=True, kw_only=True)
class TrainedProbe:
    """A probe at its best validation. Where training paused, the pause counts as one."""

    probe: Probe
    best_update: int
    last_update: int
    """The update at which training ended or paused: less than those of the schedule only with
    ``Schedule.patience``."""
    dev: Mapping[str, float]
    """Every metric of dev at ``best_update``."""
    dev_predictions: Sequence[Any]
    """The predictions on dev, in the order of its examples."""
    skipped: int
    """Updates that changed nothing, since the norm of the gradient was not finite."""

    @property
    def has_diverged(self) -> bool:
        """Whether most updates changed nothing, so that the scores say little of the encoder."""
        return 2 * self.skipped > self.last_update


class Probe(nn.Module):
    """Featurizer and head."""

    def __init__(self, layers: int, head: nn.Module) -> None:
        super().__init__()
        self.featurizer = Featurizer(layers, normalize=False)  # features come normalised
        self.head = head

    def features(self, batch: Batch) -> torch.Tensor:
        """Sums the states of a batch over layers and pads the result to ``(batch, frames,
        dim)``."""
        rows: torch.Tensor  # (rows, dim)
        if batch.basis is None:
            rows = self.featurizer(batch.states.unsqueeze(1)).squeeze(0)
        else:
            rows = self.featurizer.sum_in_basis(batch.states, batch.basis)
        count, longest = len(batch.frames), int(batch.frames.max())
        if longest == 1:
            return rows.unsqueeze(1)  # means: nothing to pad
        indices = (torch.arange(longest) < batch.frames[:, None]).flatten().nonzero()[:, 0]
        padded = rows.new_zeros(count * longest, rows.shape[1]).index_copy(
            0, indices.to(rows.device), rows
        )
        return torch.unflatten(padded, 0, (count, longest))

    def forward(self, batch: Batch) -> torch.Tensor:
        """Returns the head's logits."""
        logits: torch.Tensor = self.head(self.features(batch), batch.frames)
        return logits
