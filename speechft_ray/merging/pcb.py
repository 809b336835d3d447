"""PCB: weights each position of a donor by how important it is to the donor, and how well the other
donors agree (parameter competition balancing, arXiv 2410.02396).

As in the authors' code (github.com/duguodong7/pcb-merging), everything is computed over the whole
model, with magnitudes clipped to all but their outermost ten-thousandths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from speechft_ray.merging._selection import select_kth_smallest
from speechft_ray.merging.base import METHODS, MergeMethod, MergeParams, Share
from speechft_ray.merging.param_reader import ParamReader, ParamSlice

CLIPPED = 1e-4
"""Share of the magnitudes at either end that is clipped (the authors' code)."""


class PcbParams(MergeParams):
    """Parameters of PCB; the paper's lambda is ``scale``."""

    ratio: Share = 0.1
    """Share of a donor's positions that keep a weight, those of the largest scores (the authors'
    code; they search it)."""


class PcbGlobals(NamedTuple):
    """Precomputed values of PCB, by donor."""

    least: tuple[float, ...]
    """Smaller magnitudes are raised to this one."""
    most: tuple[float, ...]
    """Larger magnitudes are lowered to this one."""
    lowest: tuple[float, ...]
    """Smallest score."""
    threshold: tuple[float, ...]
    """Score above the lowest one from which on positions have a weight."""
    highest: tuple[float, ...]
    """Largest score, above the lowest one."""


def precompute(params: PcbParams, reader: ParamReader) -> PcbGlobals:
    """Computes quantiles of magnitudes and scores; reads a float32 model seven times."""

    def select(share: float, before: int) -> tuple[float, ...]:
        magnitudes = select_kth_smallest(
            lambda: (block.vectors for block in reader.blocks()),
            reader.donors,
            lambda donor, total: int(total * share - before) + 1,
        )
        return tuple(magnitude.value for magnitude in magnitudes)

    zeros = (0.0,) * reader.donors
    bounds = PcbGlobals(select(CLIPPED, 0), select(1 - CLIPPED, 1), zeros, zeros, zeros)
    lowest, highest = [float("inf")] * reader.donors, [float("-inf")] * reader.donors
    for block in reader.blocks():
        for donor, score in enumerate(_score(bounds, block.vectors)):
            if score.numel():
                low, high = (float(end) for end in torch.aminmax(score))
                lowest[donor] = min(lowest[donor], low)
                highest[donor] = max(highest[donor], high)
    bounds = bounds._replace(lowest=tuple(lowest))
    thresholds = select_kth_smallest(
        lambda: (_raise(bounds, _score(bounds, block.vectors)) for block in reader.blocks()),
        reader.donors,
        lambda donor, total: min(int(total * (1 - params.ratio)) + 1, total),
    )
    return bounds._replace(
        threshold=tuple(magnitude.value for magnitude in thresholds),
        highest=tuple(high - low for high, low in zip(highest, lowest, strict=True)),
    )


def combine(params: PcbParams, precomputed: PcbGlobals, part: ParamSlice) -> torch.Tensor:
    """Returns the mean of the clipped values, weighted by their scores."""
    total, divisor = torch.zeros_like(part.vectors[0]), torch.zeros_like(part.vectors[0])
    scores = _raise(precomputed, _score(precomputed, part.vectors))
    for donor, (vector, score) in enumerate(zip(part.vectors, scores, strict=True)):
        threshold = precomputed.threshold[donor]
        span = precomputed.highest[donor] - threshold
        if not span > 0.0:
            continue
        weight = score.sub_(threshold).div_(span).clamp_(0.0, 1.0)
        total.addcmul_(_clip(precomputed, donor, vector).mul_(vector.sign()), weight)
        divisor.add_(weight)
    return total.div_(divisor.clamp_min_(1e-12))


def _clip(bounds: PcbGlobals, donor: int, vector: torch.Tensor) -> torch.Tensor:
    return vector.abs().clamp_(bounds.least[donor], bounds.most[donor])


def _score(bounds: PcbGlobals, vectors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Returns exp(n m^2) tanh(vector_i sum_j vector_j) by donor, with m the clipped magnitude,
    scaled to [0, 1], and n the number of donors."""
    total = torch.zeros_like(vectors[0])
    for vector in vectors:
        total.add_(vector)
    scores = []
    for donor, vector in enumerate(vectors):
        span = bounds.most[donor] - bounds.least[donor]
        own = _clip(bounds, donor, vector).sub_(bounds.least[donor]).div_(span or 1.0)
        scores.append(own.square_().mul_(len(vectors)).exp_().mul_((vector * total).tanh_()))
    return scores


def _raise(bounds: PcbGlobals, scores: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Returns the scores above the lowest one, so that their magnitudes have their order."""
    return [score.sub_(low) for score, low in zip(scores, bounds.lowest, strict=True)]


METHODS.register(
    "pcb",
    MergeMethod(params=PcbParams, combine=combine, precompute=precompute, blockwise=True),
)
