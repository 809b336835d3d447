"""The weighted sum of hidden states that every SUPERB probe is trained on."""

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

    The logits of the weights start at zero, which is the plain average. ``normalize`` applies
    ``layer_normalize`` to states by frame.
    """

    def __init__(self, state_count: int, normalize: bool = True) -> None:
        super().__init__()
        self.normalize = normalize
        self.weights = nn.Parameter(torch.zeros(state_count))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Sums over the layers of states ``(layers, batch, frames, dim)`` or of means over frames
        ``(batch, layers, dim)``.

        Means over frames are not normalised: normalisation is not linear, so it has to precede the
        mean.
        """
        if states.dim() == 3:
            return torch.einsum("l,bld->bd", self._softmax_weights(), states)
        if self.normalize:
            states = layer_normalize(states)
        return torch.einsum("l,lbtd->btd", self._softmax_weights(), states)

    def _softmax_weights(self) -> torch.Tensor:
        return functional.softmax(self.weights, dim=0)
