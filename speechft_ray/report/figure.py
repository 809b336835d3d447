"""Draws the figures of a report as PNG bytes. Uses no pyplot, so there is no global state and no
window system.

Colours are seven of Okabe and Ito's eight (yellow is too faint on white), which are distinct with
any colour vision (Okabe & Ito 2008, "Color Universal Design").
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from speechft_ray.core.metrics import METRICS
from speechft_ray.report.lines import TableLine, describe_params, find_winner, metric_names
from speechft_ray.report.published import ALPHA_ABLATION
from speechft_ray.report.series import Series, make_series
from speechft_ray.report.table import column_title, one_line
from speechft_ray.sweep.protocols import Curve

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
REST = "#9A9A9A"
"""Colour of all series beyond the number of colours."""
DOTS_PER_INCH = 160
WIDTH_INCHES = 9.0
PANEL_COLUMNS = 3

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


def draw_alpha_curve(lines: Sequence[TableLine]) -> bytes | None:
    """Draws score against alpha: mean line, band of the spread, one faint line per seed, controls
    dashed. Returns ``None`` without data."""
    series = make_series(lines, "score")
    if not series:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, 4.8), dpi=DOTS_PER_INCH, layout="constrained")
        axes = figure.add_subplot()
        _draw_series(axes, series, "score")
        _draw_controls(axes, series)
        best = find_winner(lines)
        if best is not None and best.alpha is not None and best.score is not None:
            star: Any = {"color": "#E69F00", "markeredgecolor": "black"}
            axes.plot([best.alpha], [best.score], "*", markersize=20, zorder=6, **star)
            axes.plot([], [], "*", markersize=13, label="chosen on dev", **star)
        axes.set(
            xlabel="alpha (share of the fine-tuned model)",
            ylabel="SUPERB score, test",
            xlim=(-0.04, 1.04),
        )
        _legend(figure, axes, beyond=len(series) - len(COLOURS))
        return to_png(figure)


def draw_tasks_by_alpha(lines: Sequence[TableLine]) -> bytes | None:
    """Draws one small panel per test metric against alpha, in the unit of the metric. Returns
    ``None`` without data."""
    names = [name for name in metric_names(lines) if make_series(lines, name)]
    if not names:
        return None
    with mpl.rc_context(STYLE):
        figure, panels = make_panels(len(names))
        for axes, name in zip(panels, names, strict=True):
            series = make_series(lines, name)
            _draw_series(axes, series, name)
            if (control := series[0].control) is not None:
                axes.axhline(
                    control.mean[name], color="#555555", linestyle="--", linewidth=1, zorder=1
                )
            unit = METRICS[name].unit if name in METRICS else ""
            axes.set(
                title=column_title(name) + (", %" if unit == "percent" else ""),
                xlabel="alpha",
                xlim=(-0.04, 1.04),
            )
        _legend(figure, panels[0], beyond=len(make_series(lines, names[0])) - len(COLOURS))
        return to_png(figure)


def draw_learning_curves(curves: Sequence[Curve]) -> bytes | None:
    """Draws one panel per quantity against updates: a line per run, a colour per set of parameters
    other than the seed. Returns ``None`` without data.

    Distances of single layers (``distance_*``) have no panel, since there are too many; trackers
    log them.
    """
    names = {
        name
        for curve in curves
        for _, values in curve.points
        for name in values
        if not name.startswith("distance_")
    }
    ordered = [name for name in METRICS if name in names] + sorted(names - set(METRICS))
    if not ordered:
        return None
    setups = list(dict.fromkeys(_setup(curve, curves) for curve in curves))
    with mpl.rc_context(STYLE):
        figure, panels = make_panels(len(ordered))
        for axes, name in zip(panels, ordered, strict=True):
            in_legend: set[str] = set()
            for curve in curves:
                points = [
                    (update, values[name]) for update, values in curve.points if name in values
                ]
                setup = _setup(curve, curves)
                place = setups.index(setup)
                has_label = setup not in in_legend and place < len(COLOURS)
                in_legend.add(setup)
                style = "o-" if len(points) < 3 else "-"
                axes.plot(
                    *_columns(points),
                    style,
                    color=_colour(place),
                    linewidth=1.4,
                    markersize=3,
                    alpha=0.8,
                    label=label_text(setup) if has_label else "_nolegend_",
                )
            axes.set(title=label_text(column_title(name)), xlabel="updates")
        _legend(figure, panels[0], beyond=len(setups) - len(COLOURS))
        return to_png(figure)


def draw_paper_comparison(lines: Sequence[TableLine]) -> bytes | None:
    """Draws this sweep beside the paper's ablation, each as difference to its own pre-trained
    encoder. Returns ``None`` without data."""
    series = [item for item in make_series(lines, "score") if item.control is not None]
    if not series:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, 3.8), dpi=DOTS_PER_INCH, layout="constrained")
        sweep, paper = figure.subplots(1, 2)
        for place, item in enumerate(series):
            zero = item.control.mean["score"] if item.control else math.nan
            points = [(alpha, line.mean["score"] - zero) for alpha, line in item.points]
            style: Any = {"linewidth": 0.8, "zorder": 1.5, "label": "_nolegend_"}
            if place < len(COLOURS):
                style = {"linewidth": 2.0, "zorder": 3, "label": label_text(item.title)}
                style["marker"] = MARKERS[place]
            sweep.plot(*_columns(points), color=_colour(place), **style)
        zero = ALPHA_ABLATION[0].score
        points = [(point.alpha, point.score - zero) for point in ALPHA_ABLATION]
        paper.plot(*_columns(points), marker="o", color="#555555", linewidth=2)
        for axes, title in (
            (sweep, "this sweep"),
            (paper, "paper, Table 9 (other corpora, HuBERT Base)"),
        ):
            axes.axhline(0, color="#555555", linestyle="--", linewidth=1)
            axes.set(title=title, xlabel="alpha", xlim=(-0.04, 1.04))
        sweep.set_ylabel("score minus pre-trained")
        _legend(figure, sweep, beyond=len(series) - len(COLOURS))
        return to_png(figure)


def _draw_series(axes: Axes, series: Sequence[Series], metric: str) -> None:
    """Draws each series as its mean line, the band of its spread and one faint line per seed."""
    for place, item in enumerate(series):
        alphas, means = _columns([(alpha, line.mean[metric]) for alpha, line in item.points])
        if place >= len(COLOURS):
            axes.plot(alphas, means, color=REST, linewidth=0.8, alpha=0.7, zorder=1.5)
            continue
        colour = COLOURS[place]
        spreads = [line.spread.get(metric, 0.0) for _, line in item.points]
        if any(spreads):
            low, high = (
                [mean + sign * spread for mean, spread in zip(means, spreads, strict=True)]
                for sign in (-1, 1)
            )
            axes.fill_between(alphas, low, high, color=colour, alpha=0.15, linewidth=0)
        for seed in _points_by_seed(item, metric):
            axes.plot(
                *_columns(seed), color=colour, linewidth=0.7, alpha=0.45, marker=".", markersize=4
            )
        axes.plot(
            alphas,
            means,
            marker=MARKERS[place],
            color=colour,
            linewidth=2.2,
            markersize=6,
            label=label_text(item.title),
            zorder=3,
        )


def _points_by_seed(item: Series, metric: str) -> list[list[tuple[float, float]]]:
    """Returns the ``(alpha, value)`` points of each fine-tuning seed; none for a single seed, whose
    line would be that of the mean."""
    points: dict[object, list[tuple[float, float]]] = {}
    for alpha, line in item.points:
        for row in line.rows:
            if row.complete and metric in row.test and line.role != "pre-trained":
                points.setdefault(row.params.get("seed"), []).append((alpha, row.test[metric]))
    return list(points.values()) if len(points) > 1 else []


def _draw_controls(axes: Axes, series: Sequence[Series]) -> None:
    """Draws the score of the pre-trained encoder as a dashed line, and that of stable fine-tuning
    where there is a single series."""
    levels = [(series[0].control, "#555555")]
    if len(series) == 1:
        levels += [
            (line, _colour(0)) for _, line in series[0].points if line.role == "stable fine-tuning"
        ]
    for control, colour in levels:
        if control is not None:
            axes.axhline(
                control.mean["score"], color=colour, linestyle="--", linewidth=1.2, zorder=1
            )
            axes.annotate(
                f"{control.role} {control.mean['score']:.2f}",
                (0.995 if control.role == "pre-trained" else 0.005, control.mean["score"]),
                xycoords=("axes fraction", "data"),
                xytext=(0, 4),
                textcoords="offset points",
                ha="right" if control.role == "pre-trained" else "left",
                va="bottom",
                fontsize=9,
                color=colour,
            )


def make_panels(count: int) -> tuple[Figure, list[Axes]]:
    """Returns a figure with that many panels, ``PANEL_COLUMNS`` in a row."""
    columns = min(count, PANEL_COLUMNS)
    rows = math.ceil(count / columns)
    figure = Figure(
        figsize=(WIDTH_INCHES, 0.5 + 2.7 * rows), dpi=DOTS_PER_INCH, layout="constrained"
    )
    grid = figure.subplots(rows, columns, squeeze=False)
    panels = list(grid.flat)
    for axes in panels[count:]:
        axes.remove()
    return figure, panels[:count]


def _legend(figure: Figure, axes: Axes, beyond: int = 0) -> None:
    """Adds one legend below the figure, with the number of series ``beyond`` the colours; none for
    a single line."""
    if beyond > 0:
        axes.plot([], [], color=REST, label=f"{beyond} more")
    marks, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        columns = max(1, min(4, 100 // (max(map(len, labels)) + 8)))
        figure.set_figheight(figure.get_figheight() + 0.22 * math.ceil(len(labels) / columns))
        figure.legend(marks, labels, loc="outside lower center", ncols=columns, fontsize=9.5)


def _setup(curve: Curve, curves: Sequence[Curve]) -> str:
    """Returns the parameters in which a fine-tuning run differs from others, its seed aside."""
    names = dict.fromkeys(name for other in curves for name in other.params if name != "seed")
    differ = [name for name in names if len({other.params.get(name) for other in curves}) > 1]
    return describe_params(curve.params, differ) or "fine-tuning"


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [first for first, _ in points], [second for _, second in points]


def _colour(place: int) -> str:
    return COLOURS[place] if place < len(COLOURS) else REST


def label_text(text: str) -> str:
    """Returns a name as a label: a dollar sign would start a formula, and a leading underscore
    would hide it from the legend."""
    return one_line(text).replace("$", r"\$").lstrip("_")


def to_png(figure: Figure) -> bytes:
    """Returns the figure as a PNG file without the version of matplotlib in it."""
    target = io.BytesIO()
    figure.savefig(target, format="png", metadata={"Software": None})
    return target.getvalue()
