"""The weighted sum over hidden states that feeds every SUPERB probe."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

LAYER_NORM_EPS = 1e-5
"""torch's default, which s3prl ``upstream/interfaces.py`` uses for
``--upstream_feature_normalize``."""


def layer_normalize(states: torch.Tensor) -> torch.Tensor:
    """Layer-normalises the last dimension of ``(..., dim)`` without scale and shift; Speech-FT
    evaluates with it."""
    return functional.layer_norm(states, states.shape[-1:], eps=LAYER_NORM_EPS)


class Featurizer(nn.Module):
    """Softmax-weighted sum over the hidden states of a frozen encoder (s3prl
    ``upstream/interfaces.py``).

    The logits of the weights start at zero, which is the plain average. ``normalize`` switches
    ``layer_normalize`` on for states by frame.
    """

    def __init__(self, state_count: int, normalize: bool = True) -> None:
        super().__init__()
        self.normalize = normalize
        self.weights = nn.Parameter(torch.zeros(state_count))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Sums states ``(layers, batch, frames, dim)`` or means over frames ``(batch, layers,
        dim)`` over their layers.

        Means over frames are taken as they come: normalising is not linear, so it has to precede
        the mean.
        """
        if states.dim() == 3:
            return torch.einsum("l,bld->bd", self._shares(), states)
        if self.normalize:
            states = layer_normalize(states)
        return torch.einsum("l,lbtd->btd", self._shares(), states)

    def _shares(self) -> torch.Tensor:
        return functional.softmax(self.weights, dim=0)
