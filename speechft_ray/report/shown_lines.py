"""Chooses the lines of the table that charts by layer and by update show: the best merges and the
controls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from speechft_ray.report.charts import COLOURS, CONTROL
from speechft_ray.report.comparison import find_control
from speechft_ray.report.lines import CONTROLS, TableLine, dev_score, find_winner

MOST_MERGES = 4
"""Merges beside the controls."""


class ShownLine(NamedTuple):
    """A line of the table in a chart."""

    line: TableLine
    colour: str
    is_control: bool = False


def select_lines(lines: Sequence[TableLine]) -> list[ShownLine]:
    """Returns the winner, the merges with the next best dev scores, and for each role of a control
    the one whose parameters are most like the winner's. Without a winner the first merges."""
    best = find_winner(lines)
    merges = [line for line in lines if line.role == "merge" and line is not best]
    merges.sort(key=dev_score, reverse=True)
    shown = [*([best] if best else []), *merges][:MOST_MERGES]
    controls = []
    for role, colour in zip(CONTROLS, (CONTROL, COLOURS[-1]), strict=True):
        of_role = [line for line in lines if line.role == role]
        control = find_control(of_role, best, role) if best else None
        if control or of_role:
            controls.append((control or of_role[0], colour))
    return [
        *(ShownLine(line, COLOURS[place]) for place, line in enumerate(shown)),
        *(ShownLine(control, colour, is_control=True) for control, colour in controls),
    ]
