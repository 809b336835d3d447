"""RAM: adds changes that one donor made, and averages those of several (Reinforced Agent Merging,
arXiv 2601.13572).

RAM+ amplifies the changes of one donor alone, the more of its positions others changed as well. As
in mergekit's ``ramplus_tl`` the shares are counted tensor by tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field

from speechft_ray.merging.base import METHODS, MergeMethod, MergeParams
from speechft_ray.merging.param_reader import ParamReader, ParamSlice

Factors = Mapping[str, tuple[float, ...]]
"""Factor of each donor's lone changes, by name of the group; empty for RAM."""


class RamParams(MergeParams):
    """Parameters of RAM; the defaults are mergekit's."""

    epsilon: Annotated[float, Field(ge=0)] = 1e-5
    """Changes up to this magnitude count as none, and are dropped."""
    gain: Annotated[float, Field(ge=0)] = 0.0
    """The paper's r: lone changes are multiplied by 1 + gain * shared / lone; 0 is RAM, 0.1
    mergekit's RAM+."""
    gain_limit: Annotated[float, Field(ge=0)] = 0.2
    """Largest value of shared / lone (the paper's alpha)."""


def precompute(params: RamParams, reader: ParamReader) -> Factors:
    """Counts the positions that each donor changed alone and with others, where ``gain`` is not
    0."""
    if params.gain == 0.0:
        return {}
    counts = {
        group.name: torch.zeros(2, reader.donors, dtype=torch.float64) for group in reader.groups
    }
    for block in reader.blocks():
        changed = [value.sign().abs_() for value in _drop_small(params, block)]
        lone = (_count(changed) == 1).to(changed[0])
        for donor, mask in enumerate(changed):
            counts[block.name][0, donor] += float((mask * (1 - lone)).sum())
            counts[block.name][1, donor] += float((mask * lone).sum())
    return {
        name: tuple(
            1.0 + params.gain * min(shared / max(lone, 1.0), params.gain_limit)
            for shared, lone in zip(*each.tolist(), strict=True)
        )
        for name, each in counts.items()
    }


def combine(params: RamParams, precomputed: Factors, part: ParamSlice) -> torch.Tensor:
    """Returns the sum of the changes over the number of donors that changed the position."""
    values = _drop_small(params, part)
    count = _count([value.sign().abs_() for value in values])
    factors = precomputed.get(part.name, (1.0,) * len(values))
    lone = (count == 1).to(values[0])
    total = torch.zeros_like(values[0])
    for value, factor in zip(values, factors, strict=True):
        total.add_(value if factor == 1.0 else value * (1 + (factor - 1) * lone))
    return total.div_(count.clamp_min_(1.0))


def _drop_small(params: RamParams, part: ParamSlice) -> list[torch.Tensor]:
    """Returns the task vectors with 0 where the magnitude is at most ``epsilon``."""
    return [torch.nn.functional.hardshrink(vector, params.epsilon) for vector in part.vectors]


def _count(masks: list[torch.Tensor]) -> torch.Tensor:
    """Returns the number of donors that changed each position, in the masks' dtype."""
    total = torch.zeros_like(masks[0])
    for mask in masks:
        total.add_(mask)
    return total


METHODS.register(
    "ram",
    MergeMethod(
        params=RamParams,
        combine=combine,
        precompute=precompute,
        blockwise=True,
        neutral={"epsilon": 0.0},
    ),
)
