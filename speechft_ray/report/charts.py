"""What charts show: traces of points, with what a pointer sees at each. ``charts.js`` draws them on
the page, ``figure.py`` as pictures.

Colours are seven of Okabe and Ito's eight (yellow is too faint on white), which are distinct with
any colour vision (Okabe & Ito 2008, "Color Universal Design").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from speechft_ray.report.table import one_line

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
REST = "#9A9A9A"
"""Colour of all series beyond the number of colours."""
CONTROL = "#555555"
STAR = "#E69F00"
DIGITS = 6
"""Significant digits of the numbers in the page."""

Points = Sequence[tuple[float, float]]
Kind = Literal["line", "control", "level", "curve", "step", "dots", "seed", "rest", "star"]
"""How a trace is drawn: ``line`` with markers; ``control`` dashed; ``level`` dashed and ``curve``
solid, both without markers; ``step`` as stairs; ``dots`` without a line; ``seed`` faint; ``rest``
thin and grey; ``star`` a mark."""


class Trace(NamedTuple):
    """Points of one colour. Traces of one label have one entry in the legend."""

    label: str
    points: Points
    colour: str = COLOURS[0]
    kind: Kind = "line"
    spread: Sequence[float] = ()
    """Half the height of the band at each point; empty for no band."""
    notes: Sequence[str] = ()
    """What a pointer sees at each point, in lines; empty for the label and the values."""


class Chart(NamedTuple):
    """One pair of axes."""

    title: str
    x_label: str
    y_label: str
    traces: Sequence[Trace]
    x_range: tuple[float, float] | None = None
    ticks: Sequence[str] = ()
    """Names of the values 0, 1, ... of x; empty for numbers."""


class ChartGroup(NamedTuple):
    """Charts with one legend, a section of the page."""

    name: str
    """Of its picture, without ``.png``."""
    title: str
    caption: str
    charts: Sequence[Chart]


def colour_of(place: int) -> str:
    """Returns the colour of a series by its place."""
    return COLOURS[place] if place < len(COLOURS) else REST


def dump_group(group: ChartGroup) -> dict[str, Any]:
    """Returns what the template shows of a group; its charts as JSON data for ``charts.js``."""
    return {**group._asdict(), "charts": list(map(dump_chart, group.charts))}


def dump_chart(chart: Chart) -> dict[str, Any]:
    """Returns a chart as JSON data for ``charts.js``; numbers that are not finite are ``null``."""
    return {
        "title": one_line(chart.title),
        "x": one_line(chart.x_label),
        "y": one_line(chart.y_label),
        "range": chart.x_range,
        "ticks": list(map(one_line, chart.ticks)),
        "traces": [
            {
                "label": one_line(trace.label),
                "colour": trace.colour,
                "kind": trace.kind,
                "xs": [_round(x) for x, _ in trace.points],
                "ys": [_round(y) for _, y in trace.points],
                "spread": list(map(_round, trace.spread)),
                "notes": [[one_line(line) for line in note.split("\n")] for note in trace.notes],
            }
            for trace in chart.traces
        ],
    }


def _round(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
