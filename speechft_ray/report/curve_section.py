"""The part of a report about predicted merges: predicted against verified scores, and how far the
features were predicted wrongly."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from speechft_ray.report.charts import COLOURS, Chart, ChartGroup, Trace, colour_of, dump_group
from speechft_ray.report.figure import draw_group
from speechft_ray.report.lines import TableLine, describe_params, varying_params
from speechft_ray.report.table import STAR, escape_markdown, format_metric, markdown_row
from speechft_ray.sweep.rows import FEATURE_ERROR
from speechft_ray.sweep.titles import PREDICTED_FROM, format_value

_LAYER = re.compile(rf"{FEATURE_ERROR}/.*\.layer_(\d+)")


class PredictedSeries(NamedTuple):
    """The lines of one curve over alpha."""

    title: str
    encoded: str
    """The alphas that were encoded: ``0,0.5,1``."""
    predicted: Mapping[float, TableLine]
    real: Mapping[float, TableLine]
    """Lines with the same parameters that were merged and evaluated, the pre-trained included."""


class CurveSection(NamedTuple):
    """What ``curve.html`` shows."""

    sentences: Sequence[str]
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    group: Mapping[str, Any] | None
    """Its charts (``charts.dump_group``); ``None`` without scores."""
    image: bytes | None
    """The same as PNG."""


def make_curve_section(lines: Sequence[TableLine]) -> CurveSection | None:
    """Returns the section; ``None`` for a sweep without predictions."""
    curves = list_predicted_series(lines)
    if not curves:
        return None
    group = chart_predictions(curves)
    return CurveSection(
        sentences=describe_predictions(lines),
        header=[
            *("", "curve", "alpha", "predicted dev score", "verified dev score"),
            *("verified - predicted", "test score", "feature error by layer, %"),
        ],
        rows=[_make_row(curve, alpha) for curve in curves for alpha in _list_verified(curve)],
        group=dump_group(group) if group else None,
        image=draw_group(group) if group else None,
    )


def markdown_curve(section: CurveSection) -> str:
    """Returns the section as Markdown: sentences and table."""
    escaped = [list(map(escape_markdown, row)) for row in (section.header, *section.rows)]
    rows = [escaped[0], ["---"] * len(section.header), *escaped[1:]]
    table = "\n".join(map(markdown_row, rows)) if section.rows else ""
    return "\n\n".join(filter(None, [*map(escape_markdown, section.sentences), table])) + "\n"


def list_predicted_series(lines: Sequence[TableLine]) -> list[PredictedSeries]:
    """Returns the curves of a table, each with its predicted and its real lines by alpha."""
    names = varying_params(lines)
    curves: dict[tuple[Any, ...], list[TableLine]] = {}
    for line in lines:
        if line.role == "prediction":
            curves.setdefault(_others(line), []).append(line)
    pretrained = next((line for line in lines if line.role == "pre-trained"), None)
    controls = {} if pretrained is None else {0.0: pretrained}
    series = []
    for others, predicted in curves.items():
        real = {
            line.alpha: line
            for line in lines
            if line.role not in ("prediction", "pre-trained")
            and _others(line) == others
            and line.alpha is not None
        }
        by_alpha = {line.alpha: line for line in predicted if line.alpha is not None}
        series.append(
            PredictedSeries(
                title=describe_params(predicted[0].params, names) or "merge",
                encoded=str(predicted[0].params[PREDICTED_FROM]),
                predicted=dict(sorted(by_alpha.items())),
                real=dict(sorted({**controls, **real}.items())),
            )
        )
    return series


def describe_predictions(lines: Sequence[TableLine]) -> list[str]:
    """Returns what predictions are and how well they did, in sentences; none without any."""
    sentences = []
    for curve in list_predicted_series(lines):
        verified = _list_verified(curve)
        differences = [
            curve.real[alpha].dev_mean["score"] - curve.predicted[alpha].dev_mean["score"]
            for alpha in verified
            if "score" in curve.real[alpha].dev_mean and "score" in curve.predicted[alpha].dev_mean
        ]
        text = (
            f"{curve.title}: {len(curve.predicted)} alphas were predicted from features that are "
            f"interpolated between the encodings at alpha {curve.encoded.replace(',', ', ')}, on "
            "dev alone; "
        )
        if differences:
            mean = statistics.fmean(map(abs, differences))
            text += (
                f"the best {len(verified)} were then merged and evaluated. The verified dev score "
                f"differs by {mean:.2f} points on average (largest "
                f"{max(differences, key=abs):+.2f})."
            )
        else:
            text += "none is verified yet, so none can be the winner."
        errors = [_read_errors(curve.real[alpha]) for alpha in verified]
        largest = [max(one) for one in errors if one]
        if largest:
            text += f" The features of the worst layer were wrong by {max(largest):.1%} at most."
        elif differences:
            text += " Their feature error was not measured: another sweep had evaluated them."
        sentences.append(text)
    return sentences


def _others(line: TableLine) -> tuple[Any, ...]:
    return tuple(
        sorted(
            (name, str(value))
            for name, value in line.params.items()
            if name not in ("alpha", PREDICTED_FROM)
        )
    )


def _list_verified(curve: PredictedSeries) -> list[float]:
    return [alpha for alpha in curve.predicted if alpha in curve.real and curve.real[alpha].count]


def _read_errors(line: TableLine) -> list[float]:
    """Returns the feature error by layer, the mean over tasks and seeds; empty where it was not
    measured."""
    by_layer: dict[int, list[float]] = {}
    for row in line.rows:
        for name, value in row.extra.items():
            if match := _LAYER.fullmatch(name):
                by_layer.setdefault(int(match[1]), []).append(value)
    return [statistics.fmean(values) for _, values in sorted(by_layer.items())]


def _make_row(curve: PredictedSeries, alpha: float) -> list[str]:
    predicted, real = curve.predicted[alpha].dev_mean, curve.real[alpha].dev_mean
    scores = [values.get("score") for values in (predicted, real)]
    difference = "" if None in scores else f"{real['score'] - predicted['score']:+.2f}"
    test = curve.real[alpha].score
    errors = " ".join(f"{100 * one:.1f}" for one in _read_errors(curve.real[alpha]))
    cells = ["" if one is None else format_metric("score", one) for one in (*scores, test)]
    mark = STAR if curve.real[alpha].chosen else ""
    return [mark, curve.title, format_value(alpha), *cells[:2], difference, cells[2], errors]


def chart_predictions(curves: Sequence[PredictedSeries]) -> ChartGroup | None:
    """Returns dev score against alpha, predicted and real, and feature error against layer, of
    several curves the largest of each; ``None`` without scores."""
    if not any("score" in line.dev_mean for curve in curves for line in curve.predicted.values()):
        return None
    scores: list[Trace] = []
    errors: list[Trace] = []
    for place, curve in enumerate(curves[: len(COLOURS)]):
        title = f"{curve.title}, " if len(curves) > 1 else ""
        predicted, real = _read_scores(curve.predicted), _read_scores(curve.real)
        scores.append(Trace(f"{title}predicted", predicted, COLOURS[place], "control"))
        scores.append(Trace(f"{title}merged and evaluated", real, COLOURS[place], "dots"))
        by_alpha = {alpha: _read_errors(curve.real[alpha]) for alpha in _list_verified(curve)}
        by_alpha = {alpha: values for alpha, values in by_alpha.items() if values}
        if len(curves) > 1 and by_alpha:
            largest = [100 * max(layer) for layer in zip(*by_alpha.values(), strict=True)]
            label = f"{title}largest error"
            errors.append(Trace(label, list(enumerate(largest)), COLOURS[place], "line"))
            continue
        for alpha, values in by_alpha.items():
            label = f"alpha {format_value(alpha)}: error"
            percent = [100 * one for one in values]
            errors.append(
                Trace(label, list(enumerate(percent)), colour_of(len(errors) + 1), "line")
            )
    charts = [Chart("score, dev", "alpha", "", scores)]
    charts += [Chart("feature error, %", "layer", "", errors)] if errors else []
    return ChartGroup("predictions", "Predicted and verified", "", charts)


def draw_predicted_curves(curves: Sequence[PredictedSeries]) -> bytes | None:
    """Draws these charts as PNG bytes; ``None`` without scores."""
    group = chart_predictions(curves)
    return draw_group(group) if group else None


def _read_scores(lines: Mapping[float, TableLine]) -> list[tuple[float, float]]:
    return [
        (alpha, line.dev_mean["score"]) for alpha, line in lines.items() if "score" in line.dev_mean
    ]
