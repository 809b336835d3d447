"""Charts over alpha: the score, each task, and the score beside the paper's ablation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from speechft_ray.core.metrics import METRICS
from speechft_ray.report.charts import (
    COLOURS,
    CONTROL,
    REST,
    STAR,
    Chart,
    ChartGroup,
    Kind,
    Trace,
    colour_of,
)
from speechft_ray.report.lines import TableLine, find_winner, metric_names, metric_title
from speechft_ray.report.published import ALPHA_ABLATION
from speechft_ray.report.series import Series, make_series
from speechft_ray.report.table import column_title, format_metric, mean_and_spread

ALPHA = "alpha (share of the fine-tuned model)"
X_RANGE = (-0.04, 1.04)


class _Style(NamedTuple):
    label: str
    colour: str
    is_named: bool
    """Whether the series has a colour and a name of its own."""


def chart_scores(lines: Sequence[TableLine]) -> ChartGroup | None:
    """Returns test score against alpha: means, band of the spread, one faint line per seed,
    controls dashed; ``None`` without data."""
    series = make_series(lines, "score")
    if not series:
        return None
    names = ["score", *metric_names(lines)]
    traces = [*_trace_series(series, "score", names), *_trace_controls(series)]
    best = find_winner(lines)
    if best is not None and best.alpha is not None and best.score is not None:
        star = [(best.alpha, best.score)]
        notes = [_describe(best, names)]
        traces.append(Trace("chosen on dev", star, STAR, "star", notes=notes))
    chart = Chart("", ALPHA, "SUPERB score, test", traces, X_RANGE)
    caption = "The band is the spread (±), faint lines are single fine-tuning seeds."
    return ChartGroup("alpha_curve", "Score by alpha", caption, [chart])


def chart_tasks(lines: Sequence[TableLine]) -> ChartGroup | None:
    """Returns one chart per test metric against alpha, in the unit of the metric; ``None`` without
    data."""
    charts = []
    for name in metric_names(lines):
        series = make_series(lines, name)
        if not series:
            continue
        traces = _trace_series(series, name, [name])
        if (control := series[0].control) is not None:
            traces.append(_trace_level("pre-trained", control.mean[name], CONTROL))
        unit = METRICS[name].unit if name in METRICS else ""
        title = column_title(name) + (", %" if unit == "percent" else "")
        charts.append(Chart(title, "alpha", "", traces, X_RANGE))
    caption = "Test metrics in their own unit; dashed: the pre-trained encoder."
    return ChartGroup("tasks_by_alpha", "Tasks by alpha", caption, charts) if charts else None


def chart_paper(lines: Sequence[TableLine]) -> ChartGroup | None:
    """Returns this sweep beside the paper's ablation, each as difference to its own pre-trained
    encoder; ``None`` without data."""
    traces = []
    series = [item for item in make_series(lines, "score") if item.control is not None]
    for item, style in zip(series, _style(series), strict=True):
        zero = item.control.mean["score"] if item.control else 0.0
        points = [(alpha, line.mean["score"] - zero) for alpha, line in item.points]
        kind: Kind = "line" if style.is_named else "rest"
        traces.append(Trace(style.label, points, style.colour, kind))
    if not traces:
        return None
    zero = ALPHA_ABLATION[0].score
    published = [(point.alpha, point.score - zero) for point in ALPHA_ABLATION]
    title, y_label = "paper, Table 9 (HuBERT Base)", "score minus pre-trained"
    charts = [
        Chart("this sweep", "alpha", y_label, traces, X_RANGE),
        Chart(title, "alpha", y_label, [Trace("paper", published, CONTROL)], X_RANGE),
    ]
    return ChartGroup("published_comparison", "Beside the paper", "", charts)


def _style(series: Sequence[Series]) -> list[_Style]:
    """Returns the label and colour of each series; those beyond the colours share one entry of the
    legend."""
    rest = f"{len(series) - len(COLOURS)} more"
    return [
        _Style(item.title, colour_of(place), True)
        if place < len(COLOURS)
        else _Style(rest, REST, False)
        for place, item in enumerate(series)
    ]


def _trace_series(series: Sequence[Series], metric: str, names: Sequence[str]) -> list[Trace]:
    """Returns the mean line of each series with the band of its spread, and one faint line per
    seed. ``names``: the metrics that a pointer sees."""
    traces = []
    for item, style in zip(series, _style(series), strict=True):
        points = [(alpha, line.mean[metric]) for alpha, line in item.points]
        notes = [_describe(line, names) for _, line in item.points]
        if not style.is_named:
            traces.append(Trace(style.label, points, style.colour, "rest", notes=notes))
            continue
        spread = [line.spread.get(metric, 0.0) for _, line in item.points]
        traces += [
            Trace(style.label, seed, style.colour, "seed") for seed in _list_seeds(item, metric)
        ]
        band = spread if any(spread) else ()
        traces.append(Trace(style.label, points, style.colour, "line", band, notes))
    return traces


def _describe(line: TableLine, names: Sequence[str]) -> str:
    """Returns what a pointer sees at a merge: its title, then each metric on test and dev."""
    texts = [line.title]
    for name in names:
        parts = [f"test {text}"] if (text := mean_and_spread(line, name)) else []
        if name in line.dev_mean:
            parts.append(f"dev {format_metric(name, line.dev_mean[name])}")
        if parts:
            texts.append(f"{metric_title(name)}: {', '.join(parts)}")
    return "\n".join(texts)


def _list_seeds(item: Series, metric: str) -> list[list[tuple[float, float]]]:
    """Returns the ``(alpha, value)`` points of each fine-tuning seed; none for a single seed, whose
    line would be that of the mean."""
    points: dict[object, list[tuple[float, float]]] = {}
    for alpha, line in item.points:
        for row in line.rows:
            if row.complete and metric in row.test and line.role != "pre-trained":
                points.setdefault(row.params.get("seed"), []).append((alpha, row.test[metric]))
    return list(points.values()) if len(points) > 1 else []


def _trace_controls(series: Sequence[Series]) -> list[Trace]:
    """Returns the score of the pre-trained encoder as a dashed line, and that of stable fine-tuning
    where there is a single series."""
    levels = [(series[0].control, CONTROL)]
    if len(series) == 1:
        levels += [
            (line, COLOURS[0]) for _, line in series[0].points if line.role == "stable fine-tuning"
        ]
    # The number is in the legend: a label beside a line hides points.
    return [
        _trace_level(f"{line.role}, {line.mean['score']:.2f}", line.mean["score"], colour)
        for line, colour in levels
        if line is not None
    ]


def _trace_level(label: str, value: float, colour: str) -> Trace:
    return Trace(label, [(x, value) for x in X_RANGE], colour, "level")
