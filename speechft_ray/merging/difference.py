"""Measures the differences between two models of one architecture, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from speechft_ray.core.layers import layer_of
from speechft_ray.merging.alignment import StateDict, check_compatible


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The difference between two models in one group of parameters."""

    name: str
    num_params: int
    """Number of parameters in the group."""
    changed: int
    """Number of parameters that differ at all."""
    distance: float
    """Euclidean length of the difference."""
    relative: float
    """``distance`` over the length of the first model's parameters; infinite where those are all
    0."""
    cosine: float
    """Cosine of the angle between the parameters themselves; 1 where one of them is all 0."""


def compute_differences(first: StateDict, second: StateDict) -> list[Difference]:
    """Returns the difference of each group, what is in no layer first, and of all parameters last.

    A group is an encoder layer, or the first part of the name where a parameter is in no layer.
    Values are compared in float64. Tensors that are not floating point are not compared. Raises
    ``UserError`` when names or shapes differ.
    """
    check_compatible(
        first,
        second,
        "the second model",
        (),
        title="the first model",
        advice="Compare models of one architecture.",
    )
    groups: dict[str, list[str]] = {}
    for key, tensor in first.items():
        if tensor.is_floating_point():
            groups.setdefault(_find_group(key), []).append(key)
    sums = {
        name: sum((_compute_sums(first[key], second[key]) for key in keys), torch.zeros(5))
        for name, keys in groups.items()
    }
    by_group = [
        _make_difference(name, values)
        for name, values in sorted(sums.items(), key=lambda item: _sort_key(item[0]))
    ]
    return [*by_group, _make_difference("all", sum(sums.values(), torch.zeros(5)))]


def draw_differences(items: Sequence[Difference], title: str, path: Path) -> None:
    """Draws relative distance and share of changed weights by group, and writes a PNG file."""
    from matplotlib.figure import Figure

    groups = [item for item in items if item.name != "all"]
    figure = Figure(figsize=(7.0, 1.2 + 0.25 * len(groups)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    names = [item.name for item in groups]
    left.barh(
        names,
        [item.relative if math.isfinite(item.relative) else 0.0 for item in groups],
        color="#3b6fb6",
    )
    left.set_xlabel("distance / length of the first")
    right.barh(names, [100 * item.changed / item.num_params for item in groups], color="#c9772b")
    right.set_xlabel("changed weights, %")
    right.set_xlim(0, 100)
    left.invert_yaxis()  # the front end at the top; shared
    figure.suptitle(title)
    figure.savefig(path, format="png", dpi=120)


def _find_group(key: str) -> str:
    layer = layer_of(key)
    return (
        f"layer {layer}"
        if layer is not None
        else ".".join(key.split(".")[: 2 if key.startswith("encoder.") else 1])
    )


def _sort_key(name: str) -> tuple[int, int]:
    layer = name.removeprefix("layer ")
    return (1, int(layer)) if layer.isdigit() else (0, 0)


def _compute_sums(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    a, b = (tensor.detach().cpu().double().flatten() for tensor in (first, second))
    gap = b - a
    return torch.tensor(
        [gap.numel(), int((gap != 0).sum()), gap.dot(gap), a.dot(a), b.dot(b)], dtype=torch.float64
    )


def _make_difference(name: str, sums: Iterable[torch.Tensor]) -> Difference:
    num_params, changed, gap, a, b = (float(item) for item in sums)
    product = (a + b - gap) / 2  # of the two, from the sides of the triangle
    return Difference(
        name=name,
        num_params=int(num_params),
        changed=int(changed),
        distance=math.sqrt(gap),
        relative=math.sqrt(gap / a) if a else math.inf,
        cosine=min(1.0, product / math.sqrt(a * b)) if a and b else 1.0,
    )
