"""Writes the report of a sweep: ``table.csv``, ``table.md``, figures and one self-contained
``index.html``.

A report is computed from the store alone. It can be written again at any time, also while the sweep
still runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from speechft_ray.core.errors import UserError
from speechft_ray.core.files import atomic_write, try_writing
from speechft_ray.core.records import Outcome
from speechft_ray.report.alpha_charts import chart_paper, chart_scores, chart_tasks
from speechft_ray.report.charts import ChartGroup
from speechft_ray.report.curve_charts import chart_probes, chart_tuning
from speechft_ray.report.curve_section import make_curve_section, markdown_curve
from speechft_ray.report.effects import TestSets
from speechft_ray.report.figure import draw_group
from speechft_ray.report.layer_charts import chart_distances, chart_features, chart_layer_weights
from speechft_ray.report.lines import TableLine, add_intervals, add_leaks, group_rows
from speechft_ray.report.page import PageContent, render_page
from speechft_ray.report.search_section import make_search_files
from speechft_ray.report.search_summary import SearchResults
from speechft_ray.report.table import csv_table, markdown_table
from speechft_ray.sweep.invocations import Invocation
from speechft_ray.sweep.layers import TuningDistances
from speechft_ray.sweep.protocols import Curve, EncoderRow, Leak, SweepInfo

PAGE = "index.html"
PICTURES = ("alpha_curve", "tasks_by_alpha", "learning_curves", "published_comparison")
"""Groups of charts that are also files beside the page; the others are on the page alone."""


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything that a report shows, read from the store."""

    sweep: SweepInfo
    rows: Sequence[EncoderRow]
    curves: Sequence[Curve] = ()
    failures: Sequence[Outcome] = ()
    """Jobs that failed in the last run; the report names all of them."""
    references: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Metric name to the values that count as 0 and as 1000 in the score; also the metrics that
    every encoder should have."""
    how_to_open: str = ""
    """One sentence per tracker (``Tracker.how_to_open``)."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Name to version of the packages that computed the results."""
    made: Sequence[Invocation] = ()
    """Records of the runs of this sweep, the first one first."""
    tests: Mapping[str, TestSets] = field(default_factory=dict)
    """Counts on test of each merged encoder, by its key (``report.intervals.read_counts``)."""
    leaks: Mapping[str, Sequence[Leak]] = field(default_factory=dict)
    """Overlaps of fine-tuning data with test sets, by merged encoder."""
    distances: Sequence[TuningDistances] = ()
    """How far each fine-tuning run moved the encoder."""
    is_paper_recipe: bool = False
    """Whether the numbers can be put beside the published ones (``report.published``)."""
    winner: str | None = None
    """The merged encoder that a search selected (``Plan.winner``)."""
    search: SearchResults | None = None
    """Results of the search, for a sweep that searched its merges."""

    @cached_property
    def lines(self) -> list[TableLine]:
        """Lines of the result table with intervals and leaks, computed once for all formats."""
        lines = group_rows(self.rows, expected=self.references, winner=self.winner)
        return add_leaks(add_intervals(lines, self.tests, self.references), self.leaks)


def check_report_folder(folder: Path) -> None:
    """Makes the folder of a report. Raises ``UserError`` where no report can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try_writing(folder)
    except OSError as error:
        raise UserError(
            f"the report folder `{folder}` cannot be written ({error.strerror}): give another with "
            "--report. Nothing was computed."
        ) from None


def write_report(folder: Path, data: ReportData) -> Path:
    """Writes every file of the report into the folder and returns the path of its page.

    Each file is replaced by one rename, the page last: a reader sees the old file or the whole new
    one. A figure without data is not written, and one of an earlier report is removed. Raises
    ``UserError`` when the folder cannot be written.
    """
    search_files, search = make_search_files(data.search)
    groups = _make_groups(data)
    paper = chart_paper(data.lines) if data.is_paper_recipe else None
    drawn = [*groups, *([paper] if paper else [])]
    pictures = {group.name: draw_group(group) for group in drawn if group.name in PICTURES}
    curve = make_curve_section(data.lines)
    page = render_page(
        PageContent(
            sweep=data.sweep,
            lines=data.lines,
            failures=data.failures,
            references=data.references,
            how_to_open=data.how_to_open,
            versions=data.versions,
            made=data.made,
            curve=curve,
            search=search,
            groups=groups,
            pictures=pictures,
            paper=paper,
        )
    )
    table = markdown_table(data.sweep.name, data.lines, data.failures, data.references)
    if curve:
        table += "\n" + markdown_curve(curve)
    files: dict[str, bytes | None] = {
        **{f"{name}.png": pictures.get(name) for name in PICTURES},
        **search_files,
        "predictions.png": curve.image if curve else None,
        "table.csv": csv_table(data.lines).encode("utf-8", "replace"),
        "table.md": table.encode("utf-8", "replace"),
        PAGE: page.encode("utf-8", "replace"),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            _replace(folder / name, content)
    except OSError as error:
        raise UserError(
            f"the report folder `{folder}` cannot be written ({error.strerror}): "
            "give another folder."
        ) from None
    return folder / PAGE


def _make_groups(data: ReportData) -> list[ChartGroup]:
    """Returns the groups of charts that have data, in the order of the page."""
    groups = [
        chart_scores(data.lines),
        chart_tasks(data.lines),
        chart_layer_weights(data.lines),
        chart_distances(data.lines, data.distances),
        chart_features(data.distances),
        chart_tuning(data.curves),
        chart_probes(data.lines),
    ]
    return [group for group in groups if group is not None]


def _replace(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
        return
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
