"""What the charts of a page show, in numbers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from speechft_ray.report.alpha_charts import chart_scores, chart_tasks
from speechft_ray.report.charts import Chart, Trace, dump_chart
from speechft_ray.report.curve_charts import chart_probes, chart_tuning
from speechft_ray.report.figure import draw_group
from speechft_ray.report.layer_charts import chart_distances, chart_features, chart_layer_weights
from speechft_ray.report.lines import group_rows
from speechft_ray.report.shown_lines import MOST_MERGES, select_lines
from speechft_ray.sweep.layers import TuningDistances
from speechft_ray.sweep.protocols import Curve, EncoderRow
from tests.report.report_data import CURVES, ROWS, make_row


def add_layers(row: EncoderRow, shares: tuple[float, ...], distance: float) -> EncoderRow:
    parts = {"layer_00": distance, "layer_01": 2 * distance, "front_end": 0.0, "input": 3.0}
    points = [(10, {"probe/loss_pr": 2.0 + distance}), (10, {"probe/loss_er": 1.0})]
    points += [(20, {"probe/loss_pr": 1.0, "probe/dev_pr.per": 9.0 + distance})]
    weights = {"pr": shares}
    return replace(row, layer_weights=weights, weight_distance=parts, curve=points)


def test_the_score_chart_has_means_spreads_seeds_controls_and_what_a_pointer_sees() -> None:
    group = chart_scores(group_rows(ROWS))
    assert group is not None
    (chart,) = group.charts
    kinds = [trace.kind for trace in chart.traces]
    assert kinds == ["seed"] * 3 + ["line", "level", "level", "star"]
    (line,) = [trace for trace in chart.traces if trace.kind == "line"]
    assert list(line.points) == [(0, 870), (0.25, pytest.approx(2632 / 3)), (0.5, 881), (1, 725)]
    assert line.spread[0] == 2.5  # of one encoder: over its probe seeds
    assert line.notes[1].split("\n") == [
        "alpha 0.25",
        "score: test 877.33 ± 1.53, dev 878.00",
        "PR PER: test 4.87 ± 0.15, dev 4.87",
        "ER ACC: test 65.25 ± 0.00, dev 66.00",
    ]
    assert [trace.label for trace in chart.traces[-3:]] == [
        "pre-trained, 870.00",
        "stable fine-tuning, 725.00",
        "chosen on dev",
    ]


def test_series_beyond_the_colours_share_one_entry_of_the_legend() -> None:
    rows = [make_row(a, 0, 800 + i, dev=i, density=i / 10) for i in range(12) for a in (0.25, 1.0)]
    group = chart_tasks(group_rows([ROWS[0], *rows]))
    assert group is not None
    labels = {trace.label for trace in group.charts[0].traces}
    assert len(labels) == 9 and "5 more" in labels


def test_the_lines_of_charts_by_layer_are_the_best_merges_on_dev_and_the_controls() -> None:
    more = [make_row(alpha, 0, 800.0, dev=100 * alpha) for alpha in (0.3, 0.35, 0.4, 0.45)]
    shown = select_lines(group_rows([*ROWS, *more]))
    titles = [item.line.title for item in shown]
    assert titles == [
        *("alpha 0.25", "alpha 0.5", "alpha 0.45", "alpha 0.4"),
        *("pre-trained", "stable fine-tuning"),
    ]
    assert [item.is_control for item in shown] == [False] * MOST_MERGES + [True] * 2
    assert len({item.colour for item in shown}) == len(shown)


def test_layer_weights_are_means_over_fine_tuning_seeds() -> None:
    rows = [
        add_layers(ROWS[0], (0.5, 0.5), 0.0),
        add_layers(ROWS[1], (0.2, 0.8), 0.1),
        add_layers(ROWS[2], (0.4, 0.6), 0.3),
    ]
    group = chart_layer_weights(group_rows(rows))
    assert group is not None
    (chart,) = group.charts
    assert chart.title == "pr"
    shares = {trace.label: [y for _, y in trace.points] for trace in chart.traces}
    assert shares["pre-trained"] == [0.5, 0.5]
    assert shares["alpha 0.25"] == pytest.approx([0.3, 0.7])


def test_distances_of_merges_are_drawn_by_part_and_those_of_runs_where_there_are_none() -> None:
    run = Curve("run", "run", {"finetune": "phones", "seed": 0}, [])
    tuning = TuningDistances(run, {"input": 0.5, "layer_00": 0.25}, [1.0, None, 0.75])
    rows = [add_layers(ROWS[1], (1.0,), 0.1), add_layers(ROWS[2], (1.0,), 0.3)]
    group = chart_distances(group_rows(rows), [tuning])
    assert group is not None
    (weights,) = group.charts
    assert weights.ticks == ["conv", "in", "0", "1"]
    (merge,) = weights.traces
    assert list(merge.points) == [(0, 0.0), (1, 3.0), (2, 0.2), (3, 0.4)]
    features = chart_features([tuning])
    assert features is not None
    assert list(features.charts[0].traces[0].points) == [(0, 1.0), (2, 0.75)]
    # A storage of an earlier version has distances of the runs alone.
    group = chart_distances(group_rows(ROWS), [tuning])
    assert group is not None
    assert [list(trace.points) for trace in group.charts[0].traces] == [[(0, 0.5), (1, 0.25)]]
    assert chart_distances(group_rows(ROWS), []) is None and chart_features([]) is None
    assert chart_layer_weights(group_rows(ROWS)) is None
    assert chart_probes(group_rows(ROWS)) is None


def test_alphas_of_layers_are_alpha_times_the_factors() -> None:
    rows = [make_row(0.5, 0, 800.0, dev=1.0, layers="0.5,1")]
    rows = [replace(row, params={**row.params, "method": "layerwise"}) for row in rows]
    group = chart_distances(group_rows(rows), [])
    assert group is not None
    assert list(group.charts[0].traces[0].points) == [(0, 0.25), (1, 0.5)]


def test_curves_of_probes_are_means_over_encoders_dev_first() -> None:
    rows = [add_layers(ROWS[1], (1.0,), 0.1), add_layers(ROWS[2], (1.0,), 0.3)]
    group = chart_probes(group_rows(rows))
    assert group is not None
    points = {chart.title: list(chart.traces[0].points) for chart in group.charts}
    assert points == {
        "PR PER ↓, dev": [(20, pytest.approx(9.2))],
        "loss, pr": [(10, pytest.approx(2.2)), (20, 1.0)],
        "loss, er": [(10, 1.0)],
    }


def test_a_page_has_numbers_of_six_digits_and_null_for_those_that_are_none() -> None:
    trace = Trace("a\x1b\nb", [(1.0, 1 / 3), (2.0, math.nan)], spread=[math.inf, 1.0])
    data = dump_chart(Chart("c", "x", "y", [trace], (0.0, 3.0)))
    assert data["range"] == (0.0, 3.0)
    assert data["traces"][0] == {
        "label": "a� b",
        "colour": "#0072B2",
        "kind": "line",
        "xs": [1.0, 2.0],
        "ys": [0.333333, None],
        "spread": [None, 1.0],
        "notes": [],
    }


def test_a_picture_is_the_same_each_time() -> None:
    group = chart_tuning(CURVES)
    assert group is not None
    assert draw_group(group) == draw_group(group)
