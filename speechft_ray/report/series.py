"""Groups lines of the result table into series over alpha, for figures and the comparison with the
paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from speechft_ray.report.lines import TableLine, describe_params, dev_score, varying_params


@dataclass(frozen=True, kw_only=True)
class Series:
    """Lines of the table that differ only in alpha: one curve of a figure."""

    title: str
    points: tuple[tuple[float, TableLine], ...]
    """``(alpha, line)`` by rising alpha."""
    control: TableLine | None
    """The pre-trained encoder, if it was evaluated."""


def make_series(lines: Sequence[TableLine], metric: str) -> list[Series]:
    """Returns one series per set of parameters other than alpha that has the test metric, the one
    with the best dev score of a merge first.

    A series with a merge starts at the pre-trained encoder, which is alpha 0 of all of them. A
    later stage of a chain interpolates with an earlier merge; its series starts at its smallest
    alpha. What was fine-tuned and not merged (L2-SP, LoRA) is one point, at alpha 1.
    """
    lines_with_metric = [
        line for line in lines if line.count and line.alpha is not None and metric in line.mean
    ]
    control = next((line for line in lines_with_metric if line.role == "pre-trained"), None)
    names = varying_params(lines) or ("method", "finetune")
    by_params: dict[tuple[tuple[str, str], ...], list[TableLine]] = {}
    for line in lines_with_metric:
        if line.role != "pre-trained":
            params = ((name, str(value)) for name, value in line.params.items() if name != "alpha")
            by_params.setdefault(tuple(sorted(params)), []).append(line)
    if not by_params and control is not None:
        return [Series(title="pre-trained", points=((0.0, control),), control=control)]
    series = []
    for members in sorted(by_params.values(), key=_best_dev_score, reverse=True):
        first = members[0]
        points = [(line.alpha or 0.0, line) for line in members]
        is_merged = any(line.role == "merge" for line in members)
        if control is not None and is_merged and not _is_later_stage(first):
            points.insert(0, (0.0, control))
        series.append(
            Series(
                title=describe_params(first.params, names) or "merge",
                points=tuple(sorted(points, key=lambda point: point[0])),
                control=control,
            )
        )
    return series


def _is_later_stage(line: TableLine) -> bool:
    """Whether a line is of a later stage of a chain: only titles of chains have a ``>``."""
    return ">" in str(line.params.get("finetune", ""))


def _best_dev_score(lines: Sequence[TableLine]) -> float:
    """Returns the best dev score of the merges; controls cannot win."""
    merges = (dev_score(line) for line in lines if line.role == "merge")
    return max(merges, default=float("-inf"))
