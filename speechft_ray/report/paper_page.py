"""The page that puts each table of the paper beside ours: ``paper.html`` and ``paper.md``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from speechft_ray.report.lines import TableLine, metric_title
from speechft_ray.report.paper_claims import JudgedClaim, judge_claims
from speechft_ray.report.paper_tables import (
    COLUMNS,
    TITLES,
    PublishedRow,
    compute_sampling_error,
    find_line,
    list_rows,
    name_table,
)
from speechft_ray.report.table import format_metric
from speechft_ray.report.templates import render_template


class Cell(NamedTuple):
    """A cell of a table, with what stands in small print under it."""

    value: str
    small: str = ""


class Table(NamedTuple):
    """One table of the page."""

    number: int
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    claims: Sequence[Sequence[Cell]]
    notes: Sequence[str]


def make_table(
    number: int, lines: Mapping[str, Sequence[TableLine]], notes: Sequence[str]
) -> Table:
    """Returns a table of the paper beside ours.

    ``lines``: those of the search spaces of the table, by the model of the paper that a space
    starts from; ``""`` for every model.
    """
    rows = list_rows(number)
    names = [name for name in COLUMNS.values() if any(name in row.values for row in rows)]
    header = ["", "alpha"]
    for name in names:
        title = "score" if name == "score" else metric_title(name)
        header += [f"{title}, published", "ours"]
    verdicts = [
        verdict
        for model, of_model in (lines or {"": ()}).items()
        for verdict in judge_claims(number, of_model)
        if model in ("", verdict.claim.first.model)
    ]
    return Table(
        number=number,
        title=TITLES[number],
        header=header,
        rows=[_make_row(row, names, lines) for row in rows],
        claims=[_make_claim(verdict) for verdict in verdicts],
        notes=[*dict.fromkeys(_note(row) for row in rows if row.note), *notes],
    )


def render_paper_page(tables: Sequence[Table], scope: str) -> str:
    """Returns the page as HTML. ``scope`` says what the numbers beside the published ones are."""
    return render_template("paper.html", tables=tables, scope=scope, name_table=name_table)


def render_paper_markdown(tables: Sequence[Table], scope: str) -> str:
    """Returns the same as Markdown."""
    parts = ["# Speech-FT, table by table", "", scope, ""]
    for table in tables:
        parts += [f"## Table {name_table(table.number)}. {table.title}", ""]
        parts += [*_markdown([list(map(Cell, table.header)), *table.rows]), ""]
        if table.claims:
            header = ["claim", "published difference", "published", "our difference", "ours"]
            parts += [*_markdown([list(map(Cell, header)), *table.claims]), ""]
        parts += [line for note in table.notes for line in (f"{note}", "")]
    return "\n".join(parts).rstrip() + "\n"


def _make_row(
    row: PublishedRow, names: Sequence[str], lines: Mapping[str, Sequence[TableLine]]
) -> list[Cell]:
    of_model = lines.get(row.model, lines.get("", ()))
    line = find_line(row, of_model)
    lambda_of_line = line.params.get("anchor_penalty") if line else None
    small = f"lambda {lambda_of_line:g}" if isinstance(lambda_of_line, float) else ""
    title = (
        row.title
        if len({other.model for other in list_rows(row.table)}) == 1
        else (f"{row.model}: {row.title}")
    )
    cells = [Cell(title, small), Cell("" if row.alpha is None else f"{row.alpha:g}")]
    for name in names:
        value = row.values.get(name)
        error = compute_sampling_error(row) if name == "score" else None
        band = f"± {error:.1f}" if error is not None and value is not None else ""
        cells.append(Cell("" if value is None else format_metric(name, value), band))
        cells.append(make_own_cell(line, name) if line else Cell("-"))
    return cells


def make_own_cell(line: TableLine, name: str) -> Cell:
    """Returns a mean on test with its 95 % interval in small print."""
    if name not in line.mean:
        return Cell("-")
    ends = line.intervals.get(name)
    small = " to ".join(format_metric(name, end) for end in ends) if ends else ""
    return Cell(format_metric(name, line.mean[name]), small)


def _make_claim(verdict: JudgedClaim) -> list[Cell]:
    interval = verdict.interval
    small = f"{interval[0]:+.2f} to {interval[1]:+.2f}" if interval else ""
    return [
        Cell(verdict.claim.sentence),
        Cell(f"{verdict.published:+.2f}"),
        Cell(verdict.published_verdict),
        Cell("-" if verdict.ours is None else f"{verdict.ours:+.2f}", small),
        Cell(verdict.verdict),
    ]


def _note(row: PublishedRow) -> str:
    return f"{row.title}: {row.note}."


def _markdown(rows: Sequence[Sequence[Cell]]) -> list[str]:
    def text(cell: Cell) -> str:
        return f"{cell.value} ({cell.small})" if cell.small else cell.value

    lines = [f"| {' | '.join(text(cell) for cell in row)} |" for row in rows]
    return [lines[0], f"|{' --- |' * len(rows[0])}", *lines[1:]]
