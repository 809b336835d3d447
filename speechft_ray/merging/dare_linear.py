"""DARE with a weighted mean: drops positions of each task vector at random, rescales the others and
averages (arXiv 2311.03099).

The defaults are those of the authors' code (github.com/yule-BUAA/MergeLM), a drop rate of 0.1, with
the rescale of the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from speechft_ray.merging._drop import Gains, Rescale, compute_gains, drop
from speechft_ray.merging.base import METHODS, AveragedParams, MergeMethod, Shares, one_per_weight
from speechft_ray.merging.linear import compute_weighted_sum
from speechft_ray.merging.param_reader import ParamReader, ParamSlice


class DareParams(AveragedParams):
    """Parameters of DARE's drop and of the weighted mean after it."""

    by_donor: ClassVar[tuple[str, ...]] = ("weights", "density")
    conventions: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "mergekit": {"rescale": "l1", "normalize": False}
    }

    density: Shares = 0.9
    """Probability that a position is kept: 1 minus the paper's drop rate p. 1 keeps all. One for
    all donors, or one for each."""
    rescale: Rescale = "inverse"
    """Rescale after the drop: ``inverse`` divides by ``density`` (the paper), ``l1`` restores the
    tensor's L1 norm (mergekit), ``none`` does nothing."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Masks depend on the seed, the donor's position and the tensor's name alone."""
    like: Literal["original", "mergekit"] = "original"
    """``mergekit``: its conventions, ``rescale: l1`` and ``normalize: false``, where not set here.
    Its own default for ``density`` is 1."""


def precompute(params: DareParams, reader: ParamReader) -> Gains:
    """Computes the factors that restore the norms, where ``rescale`` is ``l1``."""
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
        blockwise=True,
        donors=one_per_weight,
        neutral={"density": 1.0},
        symmetric=False,
    ),
)
