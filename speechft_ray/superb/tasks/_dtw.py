"""Subsequence dynamic time warping of one query against many documents at once (s3prl
``quesst14_dtw/expert.py``).

The step pattern is dtw-python's ``asymmetric`` with open begin and open end: each query frame is
used once, a step moves on by 0, 1 or 2 document frames, and every path may start and end anywhere
in the document.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional

Distance = Literal["cosine", "cosine_exp"]

LEAST = 1e-9
"""Lower bound of a deviation that is divided by."""
LEAST_RANGE = 1e-6
"""Of the distances of a query frame to those of a document. Below it they differ by rounding."""


def frame_distances(
    query: torch.Tensor, documents: torch.Tensor, frames: torch.Tensor, distance: Distance
) -> torch.Tensor:
    """Returns the distance of each frame of ``query`` ``(length, dim)`` to those of ``documents``
    ``(batch, longest, dim)``.

    All frames have norm 1. Shape ``(length, batch, longest)``: 1 minus the cosine, or the
    exponential of that minus 1. Each row is stretched to reach from 0 to 1 over the ``frames``
    ``(batch,)`` of its document, and is infinite in padding. It is 1 where all are equally far, as
    in a document of one frame: nothing in it is the query more than anything else.
    """
    distances = 1.0 - torch.einsum("qd,btd->qbt", query, documents)
    if distance == "cosine_exp":
        distances = distances.expm1()
    outside = (
        torch.arange(documents.shape[1], device=frames.device) >= frames[:, None]
    )  # (batch, longest)
    low = distances.masked_fill(outside, torch.inf).amin(dim=2, keepdim=True)
    high = distances.masked_fill(outside, -torch.inf).amax(dim=2, keepdim=True)
    stretched = (distances - low) / (high - low).clamp(min=LEAST_RANGE)
    return stretched.masked_fill(high - low < LEAST_RANGE, 1.0).masked_fill(outside, torch.inf)


def subsequence_costs(distances: torch.Tensor) -> torch.Tensor:
    """Returns the least cost of the query in each document, per query frame, ``(batch,)``.

    ``distances``: those of ``frame_distances``.
    """
    best = distances[0]
    for row in distances[1:]:
        shifted = functional.pad(best, (2, 0), value=torch.inf)
        best = row + torch.minimum(torch.minimum(best, shifted[:, 1:-1]), shifted[:, :-2])
    return best.amin(dim=1) / len(distances)
