"""How far a merged model is from the one it began as."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch


def relative_distance(
    base: Mapping[str, torch.Tensor], merged: Mapping[str, torch.Tensor]
) -> float:
    """Returns ||merged - base|| / ||base||, Euclidean, over all floating-point tensors of the base;
    0 for the base itself.

    Ten digits, of sums in float64: what threads change in their order is below that, and a search
    must be repeatable.
    """
    moved, size = 0.0, 0.0
    for key, start in base.items():
        if start.is_floating_point():
            wide = start.double()
            moved += float((merged[key].double() - wide).square().sum())
            size += float(wide.square().sum())
    return float(f"{math.sqrt(moved) / math.sqrt(size):.10g}") if size else 0.0
