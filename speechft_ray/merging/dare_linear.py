"""DARE with a weighted sum: drop positions of each task vector at random, scale up what is left,
average (arXiv 2311.03099).

The defaults are those of the authors' code (github.com/yule-BUAA/MergeLM): a drop rate of 0.1, with
the rescale of the paper.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator

from speechft_ray.merging._drop import Gains, Rescale, compute_gains, drop
from speechft_ray.merging.base import METHODS, AveragedParams, MergeMethod, always, one_per_weight
from speechft_ray.merging.linear import compute_weighted_sum
from speechft_ray.merging.param_reader import ParamReader, ParamSlice

_MERGEKIT = {"rescale": "l1", "normalize": False}


class DareParams(AveragedParams):
    """Parameters of DARE's drop, with a weighted mean after it."""

    density: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Chance of a position to be kept: 1 minus the paper's drop rate p. 1 keeps all."""
    rescale: Rescale = "inverse"
    """What makes up for the drop: division by ``density`` (the paper), the tensor's L1 norm
    restored (mergekit), or nothing."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Masks are drawn from the seed, the donor's place and the tensor's name; nothing else has an
    influence."""
    like: Literal["original", "mergekit"] = "original"
    """``mergekit``: its conventions, ``rescale: l1`` and ``normalize: false``, where not set here.
    Its own default for ``density`` is 1."""

    @model_validator(mode="before")
    @classmethod
    def _conventions(cls, raw: Any) -> Any:
        return (
            {**_MERGEKIT, **raw} if isinstance(raw, dict) and raw.get("like") == "mergekit" else raw
        )


def precompute(params: DareParams, reader: ParamReader) -> Gains:
    """Measures what restores the norms, where ``rescale`` asks for it."""
    return compute_gains(reader, params.density, params.rescale, params.seed)


def combine(params: DareParams, precomputed: Gains, part: ParamSlice) -> torch.Tensor:
    """Returns the weighted mean or sum of the task vectors after the drop."""
    values = drop(part, params.density, params.rescale, params.seed, precomputed)
    return compute_weighted_sum(params.weights_of(len(values)), values, params.normalize)


METHODS.register(
    "dare_linear",
    MergeMethod(
        params=DareParams,
        combine=combine,
        precompute=precompute,
        blockwise=always,
        donors=one_per_weight,
        neutral={"density": 1.0},
        symmetric=False,
    ),
)
