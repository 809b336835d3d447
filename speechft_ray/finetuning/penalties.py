"""Distances of an encoder from its start weights, and the L2-SP penalty."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from speechft_ray.core.layers import ANY_LAYER, layer_of


def l2_sp_penalty(
    parameters: Mapping[str, torch.Tensor], anchors: Mapping[str, torch.Tensor], strength: float
) -> torch.Tensor:
    """Returns the penalty of the regularization baseline, strength * sum (theta - theta0)^2, a
    scalar.

    ``anchors`` holds theta0 by the names of ``parameters``. This is L2-SP of Li et al. 2018 (arXiv
    1802.01483) without its term for the head. The paper leaves form and grid open; this is the
    reading with lambda in {1e-4, 1e-3, 1e-2, 1e-1}.
    """
    parts = [(value - anchors[name]).square().sum() for name, value in parameters.items()]
    return strength * (torch.stack(parts).sum() if parts else torch.zeros(()))


@torch.no_grad()
def compute_distances(
    parameters: Mapping[str, torch.Tensor], anchors: Mapping[str, torch.Tensor]
) -> dict[str, float]:
    """Returns the Euclidean distance of the parameters from their start values.

    ``distance``: of all together. ``distance_input``, ``distance_layer_00``, ...: by part.
    """
    squares: dict[str, float] = {}
    for name, value in parameters.items():
        part = encoder_part(name)
        squares[part] = squares.get(part, 0.0) + float((value - anchors[name]).square().sum())
    by_part = {f"distance_{part}": math.sqrt(square) for part, square in sorted(squares.items())}
    return {"distance": math.sqrt(math.fsum(squares.values())), **by_part}


def encoder_part(name: str) -> str:
    """Returns the encoder part of a parameter: ``layer_03``, or ``input`` for all before the
    layers."""
    layer = layer_of(name, ANY_LAYER)
    return "input" if layer is None else f"layer_{layer:02d}"
