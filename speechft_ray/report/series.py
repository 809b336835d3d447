"""Lines of the result table put in a row by alpha, as figures and the comparison with the paper
need them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from speechft_ray.report.summary import TableLine, describe_params, varying_params


def make_series(lines: Sequence[TableLine], metric: str) -> list[Series]:
    """Returns one series per set of parameters other than alpha that has the metric, that of the
    best merge on dev first.

    Each starts at the pre-trained encoder, which is alpha 0 of all of them; those of later stages
    of a chain, which interpolate with an earlier merge, start at their smallest alpha.
    """
    have = [
        group for group in lines if group.count and group.alpha is not None and metric in group.mean
    ]
    control = next((group for group in have if group.role == "pre-trained"), None)
    vary = varying_params(lines)
    found: dict[tuple[tuple[str, str], ...], list[TableLine]] = {}
    for group in have:
        if group.role != "pre-trained":
            rest = tuple(
                sorted(
                    (name, str(value)) for name, value in group.params.items() if name != "alpha"
                )
            )
            found.setdefault(rest, []).append(group)
    if not found and control is not None:
        return [Series(title="pre-trained", points=((0.0, control),), control=control)]
    ranked = sorted(found.values(), key=_best_dev_score, reverse=True)
    start = [(0.0, control)] if control is not None else []
    return [
        Series(
            title=describe_params(line[0].params, vary or ("method", "finetune")) or "merge",
            points=tuple(
                sorted(
                    [
                        *([] if _is_later_stage(line[0]) else start),
                        *((group.alpha or 0.0, group) for group in line),
                    ],
                    key=lambda point: point[0],
                )
            ),
            control=control,
        )
        for line in ranked
    ]


def _is_later_stage(group: TableLine) -> bool:
    return ">" in str(group.params.get("finetune", ""))  # no name has it, only the title of a chain


def _best_dev_score(line: Sequence[TableLine]) -> float:
    """Of the merges only: a control can be first on dev, but is never what dev chose."""
    return max(
        (group.mean.get("dev.score", -math.inf) for group in line if group.role == "merge"),
        default=-math.inf,
    )


@dataclass(frozen=True, kw_only=True)
class Series:
    """Lines of the table that differ in alpha alone: one line of a figure."""

    title: str
    points: tuple[tuple[float, TableLine], ...]
    """``(alpha, group)`` by rising alpha."""
    control: TableLine | None
    """The pre-trained encoder, if it was evaluated."""
