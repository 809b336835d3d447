"""Writes the report as one HTML file: pictures, data and scripts are inlined, there is no request.

``page.html`` is the template; this module computes what it shows, and ``charts.js`` draws the
charts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from speechft_ray.core.metrics import METRICS
from speechft_ray.core.records import Outcome
from speechft_ray.report.charts import ChartGroup, dump_group
from speechft_ray.report.comparison import compare_with_controls, headline
from speechft_ray.report.curve_section import CurveSection
from speechft_ray.report.lines import TableLine, find_winner, metric_names, metric_title
from speechft_ray.report.published import ALPHA_ABLATION, LINK, SOURCE
from speechft_ray.report.scripts import list_sources, read_scripts, read_style
from speechft_ray.report.search_section import SearchSection
from speechft_ray.report.series import make_series
from speechft_ray.report.table import (
    LEAK,
    LEAK_SCOPE,
    column_title,
    common_params,
    failure_lines,
    format_metric,
    incomplete_lines,
    leak_lines,
    list_unscored,
    make_legend,
    table_cells,
)
from speechft_ray.report.templates import render_template
from speechft_ray.sweep.invocations import Invocation, list_facts
from speechft_ray.sweep.protocols import SweepInfo
from speechft_ray.sweep.titles import format_value

VERDICT_LEGEND = (
    "Different: the 95 % interval of the difference excludes 0. It covers other test speakers, and "
    "other fine-tuning and probe seeds where there are several; with two comparisons both "
    "intervals hold together. Below a value: its 95 % interval over other test speakers alone."
)
SAME_RECIPE = (
    "This sweep has the paper's encoder, fine-tuning data and updates, and its four evaluations on "
    "the same corpora. What the paper leaves open is in the search space: docs/paper.md."
)
PUBLISHED_LEGEND = (
    "Differences are to the pre-trained encoder of the same column; this sweep: the series with "
    "the best dev score. The metrics are the paper's."
)


@dataclass(frozen=True, kw_only=True)
class PageContent:
    """What the page shows."""

    sweep: SweepInfo
    lines: Sequence[TableLine]
    failures: Sequence[Outcome]
    references: Mapping[str, tuple[float, float]]
    """Metric name to the values that count as 0 and as 1000 in the score."""
    how_to_open: str
    """One sentence per tracker."""
    versions: Mapping[str, str]
    made: Sequence[Invocation]
    """Records of the runs of the sweep, the first one first."""
    groups: Sequence[ChartGroup]
    pictures: Mapping[str, bytes]
    """PNG bytes by the name of a group, for where scripts do not run."""
    paper: ChartGroup | None = None
    """This sweep beside the paper; ``None`` where the recipe is not the paper's."""
    curve: CurveSection | None = None
    """``None`` for a sweep without predictions."""
    search: SearchSection | None = None
    """``None`` for a sweep without a search."""


class Cell(NamedTuple):
    """A number in a table, with its spread and its interval as text."""

    value: str
    spread: str = ""
    interval: str = ""


def render_page(content: PageContent) -> str:
    """Returns the whole HTML document."""
    failed = [outcome for outcome in content.failures if outcome.blocked_by is None]
    last = content.made[-1] if content.made else None
    made = list_facts(last) if last is not None else content.versions
    facts = {"sweep fingerprint": content.sweep.key, **content.sweep.params, **made}
    return render_template(
        "page.html",
        name=content.sweep.label or content.sweep.name,
        headline=headline(content.lines),
        tiles=_tiles(content.lines),
        results=_results(content.lines),
        scale=[
            ["", metric_title(name), format_metric(name, zero), format_metric(name, one)]
            for name, (zero, one) in content.references.items()
        ],
        curve=content.curve,
        search=content.search,
        groups=list(map(dump_group, content.groups)),
        pictures=content.pictures,
        published=_paper_table(content, content.paper) if content.paper else None,
        sources=list_sources(),
        scripts=read_scripts(),
        chart_style=read_style(),
        failures=failed,
        blocked=failure_lines(content.failures)[len(failed) :],
        how_to_open=content.how_to_open,
        facts={name: format_value(value) for name, value in facts.items()},
        runs=[
            [record.started, record.ended or "not ended", record.status, record.host]
            for record in content.made
        ],
        space=last.space if last is not None else None,
        spec=json.dumps(last.spec, indent=1) if last is not None else None,
    )


def _tiles(lines: Sequence[TableLine]) -> list[dict[str, str]]:
    """Returns the winner's alpha and score, and its difference to each control."""
    best = find_winner(lines)
    if best is None or best.score is None:
        return []
    spread = "one seed, no spread"
    if "score" in best.spread:
        spread = f"± {best.spread['score']:.2f} over {best.spread_over}"
    alpha = format_value(best.params.get("alpha", ""))
    tiles = [
        {"title": "best alpha, chosen on dev", "value": alpha, "note": best.title},
        {"title": "test score", "value": f"{best.score:.2f}", "note": spread},
    ]
    for item in compare_with_controls(lines):
        title = f"against {item.control.role}"
        value = f"{item.difference:+.2f}"
        tiles.append({"title": title, "value": value, "note": item.verdict})
    return tiles


def _results(lines: Sequence[TableLine]) -> dict[str, object]:
    """Returns the result table with its notes."""
    names = metric_names(lines)
    common, leaks, legend = common_params(lines), leak_lines(lines), make_legend(lines)
    return {
        "header": ["", "encoder", "n", "score", "dev score", *map(column_title, names)],
        "rows": [{"cells": _cells(line, names), "kind": _row_class(line)} for line in lines],
        "notes": [
            f"{legend} All lines: {common}." if common else legend,
            VERDICT_LEGEND,
            *list_unscored(lines),
            *(f"{LEAK} {line}" for line in leaks),
            *([LEAK_SCOPE] if leaks else []),
        ],
        "incomplete": incomplete_lines(lines),
    }


def _cells(line: TableLine, names: Sequence[str]) -> list[str | Cell]:
    """Returns the cells of one line; test metrics have their spread and their interval."""
    star, title, count, score, dev, *values = table_cells(line, names)
    metrics = [_cell(line, name, text) for name, text in zip(names, values, strict=True)]
    return [star, title, count, _cell(line, "score", score), dev, *metrics]


def _cell(line: TableLine, name: str, text: str) -> Cell:
    value, _, spread = text.partition(" ± ")
    ends = line.intervals.get(name)
    interval = " to ".join(format_metric(name, end) for end in ends) if ends is not None else ""
    return Cell(value, spread, interval)


def _row_class(line: TableLine) -> str:
    return "chosen" if line.chosen else "" if line.role == "merge" else "control"


def _paper_table(content: PageContent, paper: ChartGroup) -> dict[str, object]:
    """Returns the paper's ablation over alpha, beside the best series of this sweep."""
    best = next(iter(make_series(content.lines, "score")), None)
    points = dict(best.points) if best else {}
    pretrained = best.control.score if best and best.control else None
    zero = ALPHA_ABLATION[0].score
    names = list(ALPHA_ABLATION[0].metrics)
    rows = []
    for point in ALPHA_ABLATION:
        line = points.get(point.alpha)
        difference = ""
        if line is not None and line.score is not None and pretrained is not None:
            difference = f"{line.score - pretrained:+.2f}"
        rows.append(
            [
                "",
                f"{point.alpha:.2f}",
                f"{point.score:.2f}",
                f"{point.score - zero:+.2f}",
                difference,
                *(METRICS[name].format(point.metrics[name]) for name in names),
            ]
        )
    titles = ["paper score", "difference, paper", "difference, this sweep"]
    return {
        "source": SOURCE,
        "link": LINK,
        "caution": SAME_RECIPE,
        "group": dump_group(paper),
        "header": ["", "alpha", *titles, *(METRICS[name].title for name in names)],
        "rows": rows,
        "legend": PUBLISHED_LEGEND,
    }
