"""Writes the report of a sweep: ``table.csv``, ``table.md``, figures and one self-contained
``index.html``.

A report is a view of the store and can be made again at any time, also while the sweep still runs.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from speechft_ray.core.errors import UserError
from speechft_ray.core.records import Outcome
from speechft_ray.report.figure import (
    draw_alpha_curve,
    draw_learning_curves,
    draw_paper_comparison,
    draw_tasks_by_alpha,
)
from speechft_ray.report.intervals import TestSets
from speechft_ray.report.page import PageContent, render_page
from speechft_ray.report.search_section import make_search_files
from speechft_ray.report.search_summary import SearchResults
from speechft_ray.report.summary import add_intervals, add_leaks, group_rows
from speechft_ray.report.table import csv_table, markdown_table
from speechft_ray.sweep.protocols import Curve, EncoderRow, Leak, SweepInfo

PAGE = "index.html"


def write_report(folder: Path, findings: ReportData) -> Path:
    """Writes every file of the report into the folder and returns the path of its page.

    Each file is replaced by one rename, the page last: a reader sees the old file or the whole new
    one. A figure for which there is no data yet is not written, and one left from an earlier report
    is removed. Raises ``UserError`` when the folder cannot be written.
    """
    lines = group_rows(findings.rows, expected=findings.references, chosen=findings.chosen)
    lines = add_leaks(add_intervals(lines, findings.tests, findings.references), findings.leaks)
    search, section = make_search_files(findings.search)
    figures = {
        "alpha_curve": draw_alpha_curve(lines),
        "tasks_by_alpha": draw_tasks_by_alpha(lines),
        "learning_curves": draw_learning_curves(findings.curves),
        "published_comparison": draw_paper_comparison(lines),
    }
    content = PageContent(
        sweep=findings.sweep,
        lines=lines,
        failures=findings.failures,
        references=findings.references,
        how_to_open=findings.how_to_open,
        versions=findings.versions,
        search=section,
        **figures,
    )
    files: dict[str, bytes | None] = {f"{name}.png": image for name, image in figures.items()}
    files |= search
    files["table.csv"] = csv_table(lines).encode("utf-8", "replace")
    files["table.md"] = markdown_table(
        findings.sweep.name, lines, findings.failures, findings.references
    ).encode("utf-8", "replace")
    files[PAGE] = render_page(content).encode("utf-8", "replace")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content_bytes in files.items():
            _replace(folder / name, content_bytes)
    except OSError as error:
        raise UserError(
            f"the report folder `{folder}` cannot be written ({error.strerror}): give another folder."
        ) from None
    return folder / PAGE


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """What a report is made of, read from the store."""

    sweep: SweepInfo
    rows: Sequence[EncoderRow]
    curves: Sequence[Curve] = ()
    failures: Sequence[Outcome] = ()
    """Units that failed in the last run; they are named in the report, never left out."""
    references: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Metric name to the values that count as 0 and as 1000 in the score; also the metrics every
    encoder should have."""
    how_to_open: str = ""
    """The sentence that tells how to open the tracker (``Tracker.how_to_open``)."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Name to version of what computed the results."""
    tests: Mapping[str, TestSets] = field(default_factory=dict)
    """What was counted on test of each merged encoder, by its key
    (``report.intervals.read_counts``)."""
    leaks: Mapping[str, Sequence[Leak]] = field(default_factory=dict)
    """What fine-tuning has seen of the test sets, by merged encoder."""
    chosen: str | None = None
    """The merged encoder that a search chose (``Plan.winner``)."""
    search: SearchResults | None = None
    """Of a sweep that searched its merges."""


def _replace(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
        return
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
