"""Charts by layer: the learnt weights of the probes, the distances of merges and fine-tuning runs
from their start, and alphas of layers."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from speechft_ray.report.charts import COLOURS, Chart, ChartGroup, Trace, colour_of
from speechft_ray.report.curve_charts import MOST_RUNS, name_setup
from speechft_ray.report.lines import TableLine
from speechft_ray.report.shown_lines import ShownLine, select_lines
from speechft_ray.sweep.layers import TuningDistances

HIDDEN_STATE = "hidden state (0: input of the first layer)"
PART_TITLES = {"front_end": "conv", "input": "in"}
"""Names of the parts before the layers on the axis; layers have their number."""


def chart_layer_weights(lines: Sequence[TableLine]) -> ChartGroup | None:
    """Returns one chart per evaluation: the weight that its probes learnt for each hidden state, of
    the best merges and of the controls; ``None`` without data."""
    shown = select_lines(lines)
    labels = dict.fromkeys(
        label for item in shown for row in item.line.rows for label in row.layer_weights
    )
    charts = []
    for label in labels:
        traces = []
        for item in shown:
            rows = [
                row.layer_weights[label] for row in item.line.rows if label in row.layer_weights
            ]
            if rows and len({len(shares) for shares in rows}) == 1:
                means = [fmean(shares) for shares in zip(*rows, strict=True)]
                traces.append(_trace(item, list(enumerate(means))))
        charts.append(Chart(label, HIDDEN_STATE, "share", traces))
    if not charts:
        return None
    caption = (
        "The share of each hidden state in the sum that a probe is trained on (softmax of its "
        "learnt weights), means over seeds; dashed: controls. Where the line of a merge is that of "
        "the pre-trained encoder, a task still reads the same layers."
    )
    return ChartGroup("layer_weights", "Layer weights of the probes", caption, charts)


def chart_distances(
    lines: Sequence[TableLine], tunings: Sequence[TuningDistances]
) -> ChartGroup | None:
    """Returns how far the weights of merges are from the pre-trained encoder by layer, and the
    alphas of layers of layer-wise merges; ``None`` without data."""
    charts = [_chart_weights(lines, tunings), _chart_alphas(lines)]
    present = [chart for chart in charts if chart is not None]
    if not present:
        return None
    caption = (
        "Length of the difference from the pre-trained encoder over the length of its weights, by "
        "part: convolutions, the other weights before the layers, each layer."
    )
    return ChartGroup("layer_distances", "Distance of weights by layer", caption, present)


def chart_features(tunings: Sequence[TuningDistances]) -> ChartGroup | None:
    """Returns how similar the features of fine-tuning runs stayed by layer; ``None`` without
    data."""
    points = [
        [(layer, value) for layer, value in enumerate(tuning.cka) if value is not None]
        for tuning in tunings
    ]
    traces = _trace_tunings(tunings, points)
    if not traces:
        return None
    caption = (
        "Linear CKA of each hidden state before and after fine-tuning, on dev recordings of the "
        "fine-tuning; 1 is the same up to rotation and scale. It is measured for fine-tuning runs, "
        "not for their merges."
    )
    chart = Chart("", HIDDEN_STATE, "CKA", traces)
    return ChartGroup("layer_features", "Similarity of features by layer", caption, [chart])


def _chart_weights(lines: Sequence[TableLine], tunings: Sequence[TuningDistances]) -> Chart | None:
    """Returns the distances of merges, or of fine-tuning runs where no merge has any."""
    of_lines = [
        (item, [row.weight_distance for row in item.line.rows if row.weight_distance])
        for item in select_lines(lines)
    ]
    parts = dict.fromkeys(
        part for _, rows in of_lines for distances in rows for part in distances
    ) or dict.fromkeys(part for tuning in tunings for part in tuning.weights)
    ordered = sorted(parts, key=lambda part: (part not in PART_TITLES, part))
    traces = []
    for item, rows in of_lines:
        points = [
            (place, fmean(distances[part] for distances in rows if part in distances))
            for place, part in enumerate(ordered)
            if any(part in distances for distances in rows)
        ]
        if points:
            traces.append(_trace(item, points))
    if not traces:
        traces = _trace_tunings(
            tunings,
            [
                [
                    (place, run.weights[part])
                    for place, part in enumerate(ordered)
                    if part in run.weights
                ]
                for run in tunings
            ],
        )
    ticks = [PART_TITLES.get(part) or str(int(part.rpartition("_")[2])) for part in ordered]
    return Chart("", "part, layer", "distance", traces, ticks=ticks) if traces else None


def _chart_alphas(lines: Sequence[TableLine]) -> Chart | None:
    """Returns the alphas of the layers of layer-wise merges."""
    traces = []
    for item in select_lines(lines):
        factors = str(item.line.params.get("layers", "")).split(",")
        alpha = item.line.alpha
        if len(factors) > 1 and alpha is not None and item.line.params["method"] == "layerwise":
            traces.append(
                _trace(item, [(layer, alpha * float(text)) for layer, text in enumerate(factors)])
            )
    return Chart("", "layer", "alpha of the layer", traces) if traces else None


def _trace(item: ShownLine, points: Sequence[tuple[float, float]]) -> Trace:
    return Trace(item.line.title, points, item.colour, "control" if item.is_control else "line")


def _trace_tunings(
    tunings: Sequence[TuningDistances], points: Sequence[Sequence[tuple[float, float]]]
) -> list[Trace]:
    """Returns one line per fine-tuning run that has points, a colour per set of parameters other
    than the seed."""
    runs = [tuning.run for tuning in tunings]
    setups = list(dict.fromkeys(name_setup(run, runs) for run in runs))
    traces = []
    for run, of_run in list(zip(runs, points, strict=True))[:MOST_RUNS]:
        setup = name_setup(run, runs)
        place = setups.index(setup)
        label = setup if place < len(COLOURS) else f"{len(setups) - len(COLOURS)} more"
        if of_run:
            traces.append(Trace(label, of_run, colour_of(place), "line"))
    return traces
