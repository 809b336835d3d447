"""Charts of learning curves: those of fine-tuning runs, and those of the probes."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from speechft_ray.core.curves import PROBE_DEV, PROBE_LOSS
from speechft_ray.core.metrics import METRICS
from speechft_ray.report.charts import COLOURS, Chart, ChartGroup, Points, Trace, colour_of
from speechft_ray.report.lines import TableLine, describe_params
from speechft_ray.report.shown_lines import select_lines
from speechft_ray.report.table import column_title
from speechft_ray.sweep.protocols import Curve

MOST_RUNS = 60
"""Fine-tuning runs that are drawn; trackers have all."""


def chart_tuning(curves: Sequence[Curve]) -> ChartGroup | None:
    """Returns one chart per quantity against updates: a line per run, a colour per set of
    parameters other than the seed; ``None`` without data.

    Distances of single layers (``distance_*``) have no chart, since there are too many; trackers
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
    setups = list(dict.fromkeys(name_setup(curve, curves) for curve in curves))
    charts = []
    for name in ordered:
        traces = []
        for curve in curves[:MOST_RUNS]:
            points = [(update, values[name]) for update, values in curve.points if name in values]
            setup = name_setup(curve, curves)
            place = setups.index(setup)
            label = setup if place < len(COLOURS) else f"{len(setups) - len(COLOURS)} more"
            if points:
                traces.append(Trace(label, points, colour_of(place), "curve"))
        charts.append(Chart(column_title(name), "updates", "", traces))
    caption = "One line per fine-tuning run."
    if len(curves) > MOST_RUNS:
        caption += f" The first {MOST_RUNS} of {len(curves)} runs; trackers have all."
    return ChartGroup("learning_curves", "Learning curves", caption, charts)


def name_setup(curve: Curve, curves: Sequence[Curve]) -> str:
    """Returns the parameters in which a fine-tuning run differs from others, its seed aside."""
    names = dict.fromkeys(name for other in curves for name in other.params if name != "seed")
    differ = [name for name in names if len({other.params.get(name) for other in curves}) > 1]
    return describe_params(curve.params, differ) or "fine-tuning"


def chart_probes(lines: Sequence[TableLine]) -> ChartGroup | None:
    """Returns the learning curves of the probes of the best merges and of the controls: dev metrics
    of every task, then losses, means over seeds; ``None`` without data."""
    curves = [(shown, _average(shown.line)) for shown in select_lines(lines)]
    names = list(dict.fromkeys(name for _, curve in curves for name in curve))
    if not names:
        return None
    charts = []
    for prefix in (PROBE_DEV, PROBE_LOSS):
        for name in names:
            if name.startswith(prefix):
                traces = [
                    Trace(
                        shown.line.title,
                        curve[name],
                        shown.colour,
                        "level" if shown.is_control else "curve",
                    )
                    for shown, curve in curves
                    if name in curve
                ]
                charts.append(Chart(_name_chart(name), "updates", "", traces))
    caption = (
        "Metrics of dev and losses of the probes while they are trained, of the best merges on dev "
        "and of the controls; means over seeds. A curve that still improves at its end says that "
        "the probe has too few updates."
    )
    return ChartGroup("probe_curves", "Learning curves of the probes", caption, charts)


def _average(line: TableLine) -> dict[str, Points]:
    """Returns the points of each value of the probes of a line, means over its encoders."""
    values: dict[str, dict[int, list[float]]] = {}
    for row in line.rows:
        for update, point in row.curve:
            for name, value in point.items():
                values.setdefault(name, {}).setdefault(update, []).append(value)
    return {
        name: [(update, fmean(numbers)) for update, numbers in sorted(by_update.items())]
        for name, by_update in values.items()
    }


def _name_chart(name: str) -> str:
    if name.startswith(PROBE_DEV):
        return f"{column_title(name.removeprefix(PROBE_DEV))}, dev"
    return f"loss, {name.removeprefix(PROBE_LOSS)}"
