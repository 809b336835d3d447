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
    squared_step, squared_norm = 0.0, 0.0
    for key, start in base.items():
        if start.is_floating_point():
            start64 = start.double()
            squared_step += float((merged[key].double() - start64).square().sum())
            squared_norm += float(start64.square().sum())
    return (
        float(f"{math.sqrt(squared_step) / math.sqrt(squared_norm):.10g}") if squared_norm else 0.0
    )
