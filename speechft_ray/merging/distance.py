"""Measures the distance between a merged model and its base."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch


def compute_relative_distance(
    base: Mapping[str, torch.Tensor], merged: Mapping[str, torch.Tensor]
) -> float:
    """Returns ||merged - base|| / ||base||, Euclidean, over all floating-point tensors of the base;
    0 for the base itself.

    The result is rounded to ten digits of sums in float64. The order in which threads add changes
    later digits only, so a search is repeatable.
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
