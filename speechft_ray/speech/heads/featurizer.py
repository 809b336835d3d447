"""The weighted sum of hidden states that every SUPERB probe is trained on."""

from __future__ import annotations

from typing import NamedTuple

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


class Basis(NamedTuple):
    """Directions in the space of all layers' normalised states, float32. States are ``offset`` plus
    the sum of coefficients times vectors.

    ``vectors``: ``(rank, layers, dim)``. ``offset``: ``(layers, dim)``.
    """

    vectors: torch.Tensor
    offset: torch.Tensor

    def restore(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Returns states ``(layers, rows, dim)`` of coefficients ``(rows, rank)``."""
        flat = coefficients @ self.vectors.flatten(1) + self.offset.flatten()
        return torch.unflatten(flat, 1, self.offset.shape).transpose(0, 1).contiguous()


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

    def sum_in_basis(self, coefficients: torch.Tensor, basis: Basis) -> torch.Tensor:
        """Returns the sum ``(rows, dim)`` of the states that coefficients ``(rows, rank)`` stand
        for: one product, without restoring the states."""
        weights = self._softmax_weights()
        vectors = torch.einsum("l,rld->rd", weights, basis.vectors)
        return coefficients @ vectors + weights @ basis.offset

    def _softmax_weights(self) -> torch.Tensor:
        return functional.softmax(self.weights, dim=0)
