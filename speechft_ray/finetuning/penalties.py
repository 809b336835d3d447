"""How far an encoder is from its start, and the price of it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from speechft_ray.core.layers import ANY_LAYER, layer_of


def squared_distance(
    parameters: Mapping[str, torch.Tensor], anchors: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """Returns sum (theta - theta0)^2 over all ``parameters``, a scalar; ``anchors`` holds theta0
    under the same names."""
    parts = [(value - anchors[name]).square().sum() for name, value in parameters.items()]
    return torch.stack(parts).sum() if parts else torch.zeros(())


def l2_sp(
    parameters: Mapping[str, torch.Tensor], anchors: Mapping[str, torch.Tensor], strength: float
) -> torch.Tensor:
    """Returns the regularization baseline's penalty: strength * sum (theta - theta0)^2, to be added
    to the loss.

    The L2-SP of Li et al. 2018 (arXiv 1802.01483) without its term for the head. The paper leaves
    form and grid open; this is the reading with lambda in {1e-4, 1e-3, 1e-2, 1e-1}.
    """
    return strength * squared_distance(parameters, anchors)


@torch.no_grad()
def distances(
    parameters: Mapping[str, torch.Tensor], anchors: Mapping[str, torch.Tensor]
) -> dict[str, float]:
    """Returns the Euclidean distance of the parameters from their start: all together
    (``distance``), and part by part (``distance_input``, ``distance_layer_00``, ...)."""
    squares: dict[str, float] = {}
    for name, value in parameters.items():
        part = part_of(name)
        squares[part] = squares.get(part, 0.0) + float((value - anchors[name]).square().sum())
    found = {f"distance_{part}": math.sqrt(square) for part, square in sorted(squares.items())}
    return {"distance": math.sqrt(math.fsum(squares.values())), **found}


def part_of(name: str) -> str:
    """Returns the part of an encoder that a parameter belongs to: ``layer_03``, or ``input`` for
    all before the layers."""
    layer = layer_of(name, ANY_LAYER)
    return "input" if layer is None else f"layer_{layer:02d}"
