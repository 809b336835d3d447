"""Draws charts as PNG bytes. Uses no pyplot, so there is no global state and no window system."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from speechft_ray.report.charts import COLOURS, Chart, ChartGroup, Kind, Trace
from speechft_ray.report.table import one_line

if TYPE_CHECKING:  # matplotlib takes a second to import, and most verbs draw nothing
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "osD^vPX"
DOTS_PER_INCH = 160
WIDTH_INCHES = 9.0
PANEL_COLUMNS = 3
ONE_HEIGHT = 4.8
"""Inches of a figure with one chart."""

STYLE: Any = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "legend.frameon": False,
    "figure.facecolor": "white",
}
KINDS: Mapping[Kind, Mapping[str, Any]] = {
    "line": {"linewidth": 2.2, "markersize": 6, "zorder": 3},
    "control": {"linewidth": 1.4, "linestyle": "--", "marker": ".", "zorder": 2},
    "level": {"linewidth": 1.2, "linestyle": "--", "zorder": 1},
    "curve": {"linewidth": 1.4, "markersize": 3, "alpha": 0.8},
    "step": {"linewidth": 2, "drawstyle": "steps-post"},
    "dots": {"linestyle": "none", "marker": "o", "markersize": 5, "alpha": 0.8, "zorder": 4},
    "seed": {"linewidth": 0.7, "alpha": 0.45, "marker": ".", "markersize": 4},
    "rest": {"linewidth": 0.8, "alpha": 0.7, "marker": ".", "markersize": 3, "zorder": 1.5},
    "star": {
        "marker": "*",
        "markersize": 18,
        "markeredgecolor": "black",
        "linestyle": "none",
        "zorder": 6,
    },
}


def draw_group(group: ChartGroup) -> bytes:
    """Draws the charts of a group, ``PANEL_COLUMNS`` in a row, with one legend below."""
    with apply_style():
        if len(group.charts) == 1:
            figure = make_figure(ONE_HEIGHT)
            panels = [figure.add_subplot()]
        else:
            figure, panels = make_panels(len(group.charts))
        for axes, chart in zip(panels, group.charts, strict=True):
            _draw_chart(axes, chart)
        _add_legend(figure, panels)
        return to_png(figure)


def apply_style() -> AbstractContextManager[Any]:
    """Returns a context in which figures have the style of the report."""
    import matplotlib as mpl

    return mpl.rc_context(STYLE)


def make_figure(height_inches: float) -> Figure:
    """Returns an empty figure of the report's width."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH_INCHES, height_inches), dpi=DOTS_PER_INCH, layout="constrained")


def make_panels(count: int) -> tuple[Figure, list[Axes]]:
    """Returns a figure with that many panels, ``PANEL_COLUMNS`` in a row."""
    columns = min(count, PANEL_COLUMNS)
    rows = math.ceil(count / columns)
    figure = make_figure(0.5 + 2.7 * rows)
    grid = figure.subplots(rows, columns, squeeze=False)
    panels = list(grid.flat)
    for axes in panels[count:]:
        axes.remove()
    return figure, panels[:count]


def label_text(text: str) -> str:
    """Returns a name as a label: a dollar sign would start a formula, and a leading underscore
    would hide it from the legend."""
    return one_line(text).replace("$", r"\$").lstrip("_")


def to_png(figure: Figure) -> bytes:
    """Returns the figure as a PNG file without the version of matplotlib in it."""
    target = io.BytesIO()
    figure.savefig(target, format="png", metadata={"Software": None})
    return target.getvalue()


def _draw_chart(axes: Axes, chart: Chart) -> None:
    labels: set[str] = set()
    for trace in chart.traces:
        label = label_text(trace.label) if trace.kind != "seed" else ""
        _draw_trace(axes, trace, "_nolegend_" if label in labels else label)
        labels.add(label)
    axes.set(
        title=label_text(chart.title),
        xlabel=label_text(chart.x_label),
        ylabel=label_text(chart.y_label),
        xlim=chart.x_range,
    )
    if chart.ticks:
        axes.set_xticks(range(len(chart.ticks)), list(map(label_text, chart.ticks)))


def _draw_trace(axes: Axes, trace: Trace, label: str) -> None:
    xs, ys = ([point[axis] for point in trace.points] for axis in (0, 1))
    style = dict(KINDS[trace.kind])
    if trace.kind == "line":
        place = COLOURS.index(trace.colour) if trace.colour in COLOURS else 0
        style["marker"] = MARKERS[place]
    elif trace.kind == "curve" and len(xs) < 3:
        style["marker"] = "o"
    elif trace.kind == "rest" and len(xs) == 1:
        style["markersize"] = 9
    axes.plot(xs, ys, color=trace.colour, label=label or "_nolegend_", **style)
    if len(xs) == 1 and trace.spread:
        axes.errorbar(xs, ys, list(trace.spread), color=trace.colour, alpha=0.5, capsize=3)
    elif trace.spread:
        low, high = (
            [y + sign * spread for y, spread in zip(ys, trace.spread, strict=True)]
            for sign in (-1, 1)
        )
        axes.fill_between(xs, low, high, color=trace.colour, alpha=0.15, linewidth=0)


def _add_legend(figure: Figure, panels: list[Axes]) -> None:
    """Adds one legend below the figure; none for a single line."""
    marks: dict[str, Any] = {}
    for axes in panels:
        for mark, label in zip(*axes.get_legend_handles_labels(), strict=True):
            marks.setdefault(label, mark)
    if len(marks) > 1:
        columns = max(1, min(4, 100 // (max(map(len, marks)) + 8)))
        figure.set_figheight(figure.get_figheight() + 0.22 * math.ceil(len(marks) / columns))
        places: Any = {"loc": "outside lower center", "ncols": columns, "fontsize": 9.5}
        figure.legend(list(marks.values()), list(marks), **places)
