"""A table of the paper in shape, on data of our own: rows, claims and the peak of each curve."""

from __future__ import annotations

from collections.abc import Sequence

from speechft_ray.report.comparison import compare_lines
from speechft_ray.report.lines import TableLine, metric_title
from speechft_ray.report.paper_claims import FAILS, HOLDS, OPEN, decide_above
from speechft_ray.report.paper_page import Cell, Table, make_own_cell
from speechft_ray.report.peak import Peak, find_peaks
from speechft_ray.report.series import make_series


def make_own_table(
    number: int, title: str, lines: Sequence[TableLine], notes: Sequence[str]
) -> Table:
    """Returns the lines of a sweep as a table of the paper's page, each with its 95 % interval; the
    claims are that the merge nearest to alpha 0.25 scores above pre-trained and above stable
    fine-tuning."""
    complete = [line for line in lines if line.count]
    names = ["score", *sorted({name for line in complete for name in line.mean} - {"score"})]
    return Table(
        number=number,
        title=title,
        header=[
            "",
            "alpha",
            *("score" if name == "score" else metric_title(name) for name in names),
        ],
        rows=[
            [
                Cell(line.title, f"{line.count} seeds" if line.role != "pre-trained" else ""),
                Cell("" if line.alpha is None else f"{line.alpha:g}"),
                *(make_own_cell(line, name) for name in names),
            ]
            for line in complete
        ],
        claims=[*_make_claims(lines), *map(_make_peak, find_peaks(lines))],
        notes=notes,
    )


def _make_claims(lines: Sequence[TableLine]) -> list[list[Cell]]:
    claims = []
    for series in make_series(lines, "score"):
        points = dict(series.points)
        merges = [alpha for alpha, line in series.points if line.role == "merge"]
        if not merges:
            continue
        alpha = min(merges, key=lambda value: abs(value - 0.25))
        for other in (0.0, 1.0):
            if other in points:
                claims.append(_judge(series.title, alpha, points[alpha], other, points[other]))
    return claims


def _judge(
    title: str, alpha: float, line: TableLine, other_alpha: float, other: TableLine
) -> list[Cell]:
    name = "pre-trained" if other_alpha == 0 else "stable fine-tuning alone"
    comparison = compare_lines(line, other)
    cells = [Cell(f"{title}: alpha {alpha:g} scores above {name}."), Cell("-"), Cell("-")]
    if comparison is None or comparison.interval is None:
        ours = "-" if comparison is None else f"{comparison.difference:+.2f}"
        return [*cells, Cell(ours), Cell(OPEN)]
    low, high = comparison.interval
    return [
        *cells,
        Cell(f"{comparison.difference:+.2f}", f"{low:+.2f} to {high:+.2f}"),
        Cell(decide_above(low, high)),
    ]


def _make_peak(peak: Peak) -> list[Cell]:
    interval = f"{peak.interval[0]:g} to {peak.interval[1]:g}" if peak.interval else ""
    verdicts = {True: HOLDS, False: FAILS, None: OPEN}
    tried = ", ".join(f"{alpha:g}" for alpha in peak.alphas)
    return [
        Cell(
            f"{peak.title}: of the alphas {tried} the best is inside (0, 1).", f"{peak.seeds} seeds"
        ),
        Cell("-"),
        Cell("-"),
        Cell(f"alpha {peak.alpha:g}", interval),
        Cell(verdicts[peak.is_inside]),
    ]
