"""TIES: trim each task vector, elect one sign per position, average what agrees (arXiv 2306.01708).

Speech-FT (arXiv 2502.12672, Eq. 4) merges with TIES and states none of its settings. The defaults are those of the authors'
code (github.com/prateeky2806/ties-merging, ``src/utils/merge_utils.py``; README example: K = 20, mass, dis-mean, lambda 1),
and so are the two details in which other programs differ, which are noted at ``_cut`` and ``_positive``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field

from speechft_ray.merging.base import METHODS, MergeMethod, MergeParams, TaskVector


class TiesParams(MergeParams):
    """Parameters of TIES; the defaults are those of the authors' code."""

    density: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of the positions of a task vector that the trim keeps; 1 keeps all. Positions of frozen parameters count."""
    scope: Literal["global", "tensor"] = "global"
    """``global``: one threshold for the whole task vector (the authors' code). ``tensor``: one per tensor (mergekit, PEFT)."""
    elect: Literal["mass", "count"] = "mass"
    """The sign of a position is that of the summed values (``mass``) or of the summed signs (``count``)."""
    scale: float = 1.0
    """Factor of the merged task vector: lambda of the TIES paper."""


def combine(params: TiesParams, vectors: Sequence[TaskVector]) -> dict[str, torch.Tensor]:
    """Returns ``scale`` times the mean of the trimmed values that have the elected sign; 0 where none has it."""
    cuts = [_cuts(params, vector) for vector in vectors]

    def trimmed(key: str) -> list[torch.Tensor]:
        # Made again for each pass: kept, they would double the memory of the merge.
        return [_trim(vector[key], cut[key]) for vector, cut in zip(vectors, cuts, strict=True)]

    positive = _positive({key: _elect(params, trimmed(key)) for key in vectors[0]})
    return {key: _agreeing_mean(trimmed(key), positive[key]).mul_(params.scale) for key in vectors[0]}


def _cuts(params: TiesParams, vector: TaskVector) -> dict[str, float]:
    """Returns for each tensor the magnitude below which the trim drops."""
    if params.scope == "tensor":
        return {key: _cut(tensor.abs().flatten(), params.density) for key, tensor in vector.items()}
    cut = _cut(torch.cat([tensor.flatten() for tensor in vector.values()]).abs_(), params.density)
    return dict.fromkeys(vector, cut)


def _cut(magnitudes: torch.Tensor, density: float) -> float:
    """Returns the k-th smallest magnitude with k = n - int(n * density), 0 when that keeps all; ``magnitudes`` is ``(n,)``.

    Since the k-th itself is kept, int(n * density) + 1 positions stay, and any that tie with it, as in the authors' code.
    """
    rank = magnitudes.numel() - int(magnitudes.numel() * density)
    return float(magnitudes.kthvalue(rank).values) if rank >= 1 else 0.0


def _trim(values: torch.Tensor, cut: float) -> torch.Tensor:
    return values.where(values.abs() >= cut, 0.0)


def _elect(params: TiesParams, trimmed: Sequence[torch.Tensor]) -> torch.Tensor:
    """Returns the elected signs -1, 0, 1 as int8. Sums run in donor order, as a stack of the donors would be summed."""
    total = torch.zeros_like(trimmed[0])
    for values in trimmed:
        total.add_(values.sign() if params.elect == "count" else values)
    return total.sign_().to(torch.int8)


def _positive(signs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns where the elected sign is +.

    Positions whose sum is 0 take the sign of all elected signs summed over the whole model, and - when that is 0 as well (the
    authors' code; mergekit elects + there).
    """
    majority = sum(int(sign.sum(dtype=torch.int64)) for sign in signs.values())
    return {key: sign >= 0 if majority > 0 else sign > 0 for key, sign in signs.items()}


def _agreeing_mean(trimmed: Sequence[torch.Tensor], positive: torch.Tensor) -> torch.Tensor:
    """Returns the mean over the donors that are not 0 and have the elected sign (the paper's disjoint mean)."""
    total, count = torch.zeros_like(trimmed[0]), torch.zeros_like(trimmed[0])
    for values in trimmed:
        agrees = torch.where(positive, values > 0, values < 0)
        total.add_(values.where(agrees, 0.0))
        count.add_(agrees)
    return total.div_(count.clamp_(min=1))


METHODS.register("ties", MergeMethod(params=TiesParams, combine=combine))
