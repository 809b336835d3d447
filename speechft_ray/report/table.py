"""Writes the result table as CSV (all values), Markdown (for a README) and a terminal table."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from speechft_ray.core.metrics import METRICS
from speechft_ray.core.records import Outcome
from speechft_ray.report.comparison import headline
from speechft_ray.report.lines import (
    CONTROLS,
    Role,
    TableLine,
    metric_names,
    metric_title,
    varying_params,
)
from speechft_ray.sweep.titles import PREDICTED_FROM, format_value, name_param

TERMINAL_COLUMNS = 100
TERMINAL_LINES = 20
"""Lines of the terminal table, besides controls and the winner."""
_FIRST_COLUMN = 30
_METRIC_COLUMN = 6
_FACTS = ("n", "score", "dev")

STAR, LEAK = "★", "†"
LEGEND = (
    f"{STAR} the merge with the best dev score, of those with the most encoders; other columns are "
    "test. n: encoders averaged (fine-tuning seeds). ±: sample standard deviation over them, or "
    "over probe seeds where n is marked (p)."
)
PREDICTED = "≈"
PREDICTED_LEGEND = (
    f"{PREDICTED} predicted, not merged: its probes were trained on features that are interpolated "
    "between encodings of the same line, and its numbers are dev. It cannot win before it is "
    "verified by a merge."
)

_NOTES: Mapping[Role, str] = {
    **dict.fromkeys(CONTROLS, " (control)"),
    "prediction": " (predicted)",
}

LEAK_SCOPE = (
    "Recordings are compared by their bytes and by their decoded samples: copies with another "
    "gain, cut, sample rate or lossy coding are not detected."
)
"""What a reader has to know about the sentences on leaks."""


def csv_table(lines: Sequence[TableLine]) -> str:
    """Returns all means, spreads, intervals and parameters as CSV, unrounded, one row per line."""
    header, records = make_records(lines)
    text = io.StringIO()
    out = csv.DictWriter(text, header, lineterminator="\n")
    out.writeheader()
    out.writerows(records)
    return text.getvalue()


def make_records(lines: Sequence[TableLine]) -> tuple[list[str], list[dict[str, object]]]:
    """Returns the columns of the table, and one record per line, which lacks the columns that the
    line has no value for.

    Units are those of the metric table; scores are points. ``.spread`` is a standard deviation,
    ``.low`` and ``.high`` are the ends of the 95 % interval, ``dev.`` begins what is of dev.
    """
    params = list(dict.fromkeys(name_param(name) for line in lines for name in line.params))
    dev_names = sorted({f"dev.{name}" for line in lines for name in line.dev_mean})
    metrics = list(dict.fromkeys(["score", "dev.score", *metric_names(lines), *dev_names]))
    header = ["title", "role", "chosen", "seeds", "spread_over", "missing", "untuned", "leaks"]
    header += params
    with_interval = {name for line in lines for name in line.intervals}
    for name in metrics:
        header += [name, f"{name}.spread"]
        header += [f"{name}.low", f"{name}.high"] if name in with_interval else []
    records = []
    for line in lines:
        cells: dict[str, object] = {
            "title": line.title,
            "role": line.role,
            "chosen": int(line.chosen),
            "seeds": line.count,
            "spread_over": line.spread_over,
            "missing": "; ".join([*line.missing, *line.stopped]),
            "untuned": "; ".join(line.untuned),
            "leaks": "; ".join(leak.sentence() for leak in line.leaks),
            **{name_param(name): value for name, value in line.params.items()},
            **line.mean,
            **{f"{name}.spread": value for name, value in line.spread.items()},
            **{f"dev.{name}": value for name, value in line.dev_mean.items()},
            **{f"dev.{name}.spread": value for name, value in line.dev_spread.items()},
        }
        for name, ends in line.intervals.items():
            cells[f"{name}.low"], cells[f"{name}.high"] = ends
        records.append(cells)
    return header, records


def markdown_table(
    name: str,
    lines: Sequence[TableLine],
    failures: Sequence[Outcome],
    references: Mapping[str, tuple[float, float]],
) -> str:
    """Returns headline, table, leaks, missing evaluations and failures as Markdown.

    Names are escaped, so that none breaks out of its cell.
    """
    names = metric_names(lines)
    header = ["", "encoder", "n", "score", "dev score", *(column_title(item) for item in names)]
    align = ["---", "---", *["---:"] * (len(header) - 2)]
    rows = [[escape_markdown(cell) for cell in table_cells(line, names)] for line in lines]
    parts = [
        f"# {escape_markdown(name)}",
        escape_markdown(headline(lines)),
        "\n".join(map(markdown_row, [header, align, *rows])),
        escape_markdown(make_legend(lines)),
    ]
    if common := common_params(lines):
        parts.append(escape_markdown(f"All lines: {common}."))
    parts += [escape_markdown(sentence) for sentence in list_unscored(lines)]
    if leaks := leak_lines(lines):
        parts.append(f"{LEAK} Leaks:\n\n{_md_list(leaks)}\n\n{LEAK_SCOPE}")
    if notes := incomplete_lines(lines):
        parts.append(f"Incomplete, not tuned or not learnt:\n\n{_md_list(notes)}")
    if failures:
        parts.append(f"Failed ({len(failures)}):\n\n{_md_list(failure_lines(failures))}")
    if references:
        scale = "; ".join(
            f"{metric_title(key)} {zero:g} to {one:g}" for key, (zero, one) in references.items()
        )
        parts.append(escape_markdown(f"Score 0 to 1000 is: {scale}."))
    return "\n\n".join(parts) + "\n"


def terminal_table(lines: Sequence[TableLine]) -> Table:
    """Returns the best lines and all controls for a terminal of 100 columns.

    The caption says how much only ``table.csv`` has.
    """
    # Which lines and metrics fit into the width.
    names = metric_names(lines)
    shown = [
        line
        for place, line in enumerate(lines)
        if place < TERMINAL_LINES or line.chosen or line.role in CONTROLS
    ]
    facts = [table_cells(line, ())[2:] for line in shown]
    widths = [
        max([len(title), *map(len, column)])
        for title, column in zip(_FACTS, zip(*facts, strict=True), strict=False)
    ]
    free = TERMINAL_COLUMNS - (1 + _FIRST_COLUMN + sum(widths) + 1 + len(widths))
    metric_width = _METRIC_COLUMN + any(line.leaks for line in shown)  # one more for the mark
    shown_names = names[: max(0, free // (metric_width + 1))]
    spare = free - len(shown_names) * (metric_width + 1)
    hidden = [(len(lines) - len(shown), "line"), (len(names) - len(shown_names), "metric")]
    more = [f"{count} more {what}{'s' if count > 1 else ''}" for count, what in hidden if count]
    # Columns, then rows.
    table = Table(
        caption=make_legend(shown) + (f" In table.csv: {', '.join(more)}." if more else ""),
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    table.add_column("", width=1)
    table.add_column(
        "encoder", min_width=_FIRST_COLUMN, max_width=_FIRST_COLUMN + max(0, spare), overflow="fold"
    )
    for title in _FACTS:
        table.add_column(title, justify="right", no_wrap=True)
    for name in shown_names:
        heading = Text(column_title(name).replace(" ", "\n", 1))
        table.add_column(heading, justify="right", width=metric_width)
    for line in shown:
        values = [_narrow_cell(line, name) for name in shown_names]
        style = "bold" if line.chosen else "" if line.role == "merge" else "dim"
        cells = [*table_cells(line, ()), *values]
        table.add_row(*(Text(one_line(cell)) for cell in cells), style=style)
    return table


def make_legend(lines: Sequence[TableLine]) -> str:
    """Returns what the marks and columns of a table mean."""
    has_predictions = any(line.role == "prediction" for line in lines)
    return f"{LEGEND} {PREDICTED_LEGEND}" if has_predictions else LEGEND


def _narrow_cell(line: TableLine, name: str) -> str:
    """Returns the mean and a leak mark, without the spread."""
    if name not in line.mean:
        return ""
    return format_metric(name, line.mean[name]) + (LEAK if line.has_leak(name) else "")


def table_cells(line: TableLine, names: Sequence[str]) -> list[str]:
    """Returns mark, title, n, score, dev score and the named metrics of one line, not escaped."""
    state = ""
    if not line.count:
        state = " (stopped)" if line.stopped and not line.missing else " (incomplete)"
    state += " (not tuned)" if line.untuned else ""
    over_probes = line.count and line.spread_over == "probe seeds"
    dev = line.dev_mean.get("score")
    return [
        STAR if line.chosen else PREDICTED if line.role == "prediction" else "",
        line.title + _NOTES.get(line.role, "") + state,
        f"{line.count} (p)" if over_probes else str(line.count),
        mean_and_spread(line, "score"),
        "" if dev is None else format_metric("score", dev),
        *(mean_and_spread(line, name) for name in names),
    ]


def mean_and_spread(line: TableLine, name: str) -> str:
    """Returns ``877.66 ± 1.20``, without ``±`` where there is only one number; empty for none.

    ``†`` follows where the fine-tuning data overlaps with the test set.
    """
    if name not in line.mean:
        return ""
    text = format_metric(name, line.mean[name])
    if name in line.spread:
        text += f" ± {format_metric(name, line.spread[name])}"
    return f"{text} {LEAK}" if line.has_leak(name) else text


def format_metric(name: str, value: float) -> str:
    """Returns a value as text: as the metric table says, scores and unknown metrics with two
    decimals."""
    return METRICS[name].format(value) if name in METRICS else f"{value:.2f}"


def column_title(name: str) -> str:
    """Returns the title of a metric with an arrow that points to better values."""
    if name not in METRICS:
        return metric_title(name)
    return f"{metric_title(name)} {'↑' if METRICS[name].higher_is_better else '↓'}"


def incomplete_lines(lines: Sequence[TableLine]) -> list[str]:
    """Returns one sentence per incomplete encoder: which evaluations it lacks, or why it stays
    incomplete; per encoder that its fine-tuning left as it was; and per fine-tuning run that learnt
    next to nothing."""
    missing = [f"{line.title}: {note} missing" for line in lines for note in line.missing]
    notes = [(line, note) for line in lines for note in (*line.stopped, *line.untuned)]
    unlearnt = dict.fromkeys(note for line in lines for note in line.unlearnt)
    return [*missing, *(f"{line.title}: {note}" for line, note in notes), *unlearnt]


def leak_lines(lines: Sequence[TableLine]) -> list[str]:
    """Returns one sentence per fine-tuning run and task whose data overlap."""
    return list(dict.fromkeys(f"{leak.sentence()}." for line in lines for leak in line.leaks))


def list_unscored(lines: Sequence[TableLine]) -> list[str]:
    """Returns one sentence per metric that is not part of the score, and per encoder without
    one."""
    return list(dict.fromkeys(reason for line in lines for reason in line.unscored))


def failure_lines(failures: Sequence[Outcome]) -> list[str]:
    """Returns ``label: error`` per failed job, and how many jobs each of them blocked."""
    lines = [
        one_line(f"{item.label}: {item.error or 'no error text'}")
        for item in failures
        if item.blocked_by is None
    ]
    blocked = Counter(item.blocked_by for item in failures if item.blocked_by is not None)
    return lines + [
        one_line(f"{label}: {count} jobs that need it were not started")
        for label, count in blocked.items()
    ]


def common_params(lines: Sequence[TableLine]) -> str:
    """Returns the parameters that all fine-tuned lines share; titles leave them out."""
    varying = {*varying_params(lines), "alpha", PREDICTED_FROM}
    params = next((line.params for line in lines if line.role != "pre-trained"), {})
    return ", ".join(
        f"{name_param(name)} {format_value(value)}"
        for name, value in params.items()
        if name not in varying
    )


def one_line(text: str) -> str:
    """Returns the text on one line without control characters, which could control a terminal."""
    joined = " ".join(text.split())
    if joined.isprintable():
        return joined
    return "".join(character if character.isprintable() else "�" for character in joined)


def escape_markdown(text: str) -> str:
    """Returns a text that Markdown shows as it is, also in a cell."""
    text = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", text)


def _md_list(items: Sequence[str]) -> str:
    return "\n".join(f"- {escape_markdown(item)}" for item in items)


def markdown_row(cells: Sequence[str]) -> str:
    """Returns a row of a table; its cells must be escaped."""
    return f"| {' | '.join(cells)} |"
