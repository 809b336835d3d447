"""The result table as CSV (everything), Markdown (for a README) and a terminal table (100
columns)."""

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
from speechft_ray.report.summary import (
    TableLine,
    format_value,
    headline,
    metric_names,
    metric_title,
    varying_params,
)

TERMINAL_COLUMNS = 100
_FIRST_COLUMN = 30
_METRIC_COLUMN = 6
_FACTS = ("n", "score", "dev")

STAR, LEAK = "★", "†"
LEGEND = (
    f"{STAR} the merge with the best dev score; other columns are test. n: encoders averaged (fine-tuning seeds). "
    "±: sample standard deviation over them, or over probe seeds where n is marked (p)."
)


def csv_table(lines: Sequence[TableLine]) -> str:
    """Returns every mean, spread, interval and parameter as CSV, one line per group, unrounded."""
    params = list(dict.fromkeys(name for group in lines for name in group.params))
    measured = list(
        dict.fromkeys(
            [
                "score",
                "dev.score",
                *metric_names(lines),
                *sorted({n for g in lines for n in g.mean}),
            ]
        )
    )
    header = ["title", "role", "chosen", "seeds", "spread_over", "missing", "leaks", *params]
    drawn = {name for group in lines for name in group.resampled}
    for name in measured:
        header += [
            name,
            f"{name}.spread",
            *([f"{name}.low", f"{name}.high"] if name in drawn else []),
        ]
    text = io.StringIO()
    out = csv.DictWriter(text, header, lineterminator="\n")
    out.writeheader()
    for group in lines:
        facts: dict[str, object] = {
            "title": group.title,
            "role": group.role,
            "chosen": int(group.chosen),
            "seeds": group.count,
            "spread_over": group.spread_over,
            "missing": "; ".join([*group.missing, *group.stopped]),
            "leaks": "; ".join(leak.sentence() for leak in group.leaks),
            **group.params,
            **group.mean,
            **{f"{name}.spread": value for name, value in group.spread.items()},
            **{
                f"{name}.{end}": value
                for name in group.resampled
                for end, value in _ends(group, name)
            },
        }
        out.writerow(facts)
    return text.getvalue()


def _ends(group: TableLine, name: str) -> list[tuple[str, float]]:
    return list(zip(("low", "high"), group.interval(name) or (), strict=False))


def markdown_table(
    name: str,
    lines: Sequence[TableLine],
    failures: Sequence[Outcome],
    references: Mapping[str, tuple[float, float]],
) -> str:
    """Returns the answer, the table, what is missing and what failed as Markdown. Names cannot
    break out of their cell."""
    names = metric_names(lines)
    header = ["", "encoder", "n", "score", "dev score", *(column_title(item) for item in names)]
    rows = [[_md(cell) for cell in table_cells(group, names)] for group in lines]
    parts = [
        f"# {_md(name)}",
        _md(headline(lines)),
        "\n".join(
            [
                _md_row(header),
                _md_row(["---", "---", *["---:"] * (len(header) - 2)]),
                *(_md_row(cells) for cells in rows),
            ]
        ),
        _md(LEGEND),
    ]
    if common := common_params(lines):
        parts.append(_md(f"All lines: {common}."))
    if told := leak_lines(lines):
        parts.append(f"{LEAK} Leaks:\n\n" + "\n".join(f"- {_md(line)}" for line in told))
    if notes := incomplete_lines(lines):
        parts.append("Incomplete:\n\n" + "\n".join(f"- {_md(note)}" for note in notes))
    if failures:
        parts.append(
            f"Failed ({len(failures)}):\n\n"
            + "\n".join(f"- {_md(line)}" for line in failure_lines(failures))
        )
    if references:
        scale = "; ".join(
            f"{metric_title(key)} {zero:g} to {one:g}" for key, (zero, one) in references.items()
        )
        parts.append(_md(f"Score 0 to 1000 is: {scale}."))
    return "\n\n".join(parts) + "\n"


def terminal_table(lines: Sequence[TableLine], most: int = 20) -> Table:
    """Returns the best lines and all controls for a terminal of 100 columns; the caption says what
    only ``table.csv`` has."""
    names = metric_names(lines)
    shown = [
        group
        for place, group in enumerate(lines)
        if place < most or group.chosen or group.role != "merge"
    ]
    facts = [table_cells(group, ())[2:] for group in shown]
    widths = [
        max([len(title), *map(len, column)])
        for title, column in zip(_FACTS, zip(*facts, strict=True), strict=False)
    ]
    room = TERMINAL_COLUMNS - (1 + _FIRST_COLUMN + sum(widths) + 1 + len(widths))
    shown_names = names[: max(0, room // (_METRIC_COLUMN + 1))]
    spare = room - len(shown_names) * (_METRIC_COLUMN + 1)
    hidden = [(len(lines) - len(shown), "line"), (len(names) - len(shown_names), "metric")]
    more = [f"{count} more {what}{'s' if count > 1 else ''}" for count, what in hidden if count]
    caption = LEGEND + (f" In table.csv: {', '.join(more)}." if more else "")
    table = Table(
        caption=caption, caption_justify="left", box=SIMPLE_HEAD, padding=0, show_edge=False
    )
    table.add_column("", width=1)
    table.add_column(
        "encoder", min_width=_FIRST_COLUMN, max_width=_FIRST_COLUMN + max(0, spare), overflow="fold"
    )
    for title in _FACTS:
        table.add_column(title, justify="right", no_wrap=True)
    for name in shown_names:
        table.add_column(
            Text(column_title(name).replace(" ", "\n", 1)), justify="right", width=_METRIC_COLUMN
        )
    for group in shown:
        values = [
            format_metric(name, group.mean[name]) if name in group.mean else ""
            for name in shown_names
        ]
        style = "bold" if group.chosen else "dim" if group.role != "merge" else ""
        table.add_row(
            *(Text(one_line(cell)) for cell in [*table_cells(group, ()), *values]), style=style
        )
    return table


def table_cells(group: TableLine, names: Sequence[str]) -> list[str]:
    """Returns mark, title, n, score, dev score and the metrics of one line, as text that is not
    escaped for anything."""
    state = (
        ""
        if group.count
        else " (stopped)"
        if group.stopped and not group.missing
        else " (incomplete)"
    )
    title = group.title + (" (control)" if group.role != "merge" else "") + state
    dev = group.mean.get("dev.score")
    return [
        STAR if group.chosen else "",
        title,
        f"{group.count} (p)"
        if group.count and group.spread_over == "probe seeds"
        else str(group.count),
        mean_and_spread(group, "score"),
        "" if dev is None else format_metric("score", dev),
        *(mean_and_spread(group, name) for name in names),
    ]


def mean_and_spread(group: TableLine, name: str) -> str:
    """Returns ``877.66 ± 1.20``, without ``±`` where one number is all there is; empty where
    nothing was measured.

    A sign follows where fine-tuning has seen something of the test set.
    """
    if name not in group.mean:
        return ""
    text = format_metric(name, group.mean[name])
    if name in group.spread:
        text += f" ± {format_metric(name, group.spread[name])}"
    return f"{text} {LEAK}" if group.leaked(name) else text


def format_metric(name: str, value: float) -> str:
    """Returns the value as the metric table prints it; scores and unknown metrics with two
    decimals."""
    known = METRICS.get(name.removeprefix("dev."))
    return known.format(value) if known else f"{value:.2f}"


def column_title(name: str) -> str:
    """Returns the metric's title with an arrow that points to better."""
    known = METRICS.get(name)
    return metric_title(name) + ("" if known is None else " ↑" if known.higher_is_better else " ↓")


def incomplete_lines(lines: Sequence[TableLine]) -> list[str]:
    """Returns one sentence per encoder that still lacks evaluations, or will never have them."""
    missing = [f"{group.title}: {note} missing" for group in lines for note in group.missing]
    return missing + [f"{group.title}: {note}" for group in lines for note in group.stopped]


def leak_lines(lines: Sequence[TableLine]) -> list[str]:
    """Returns one sentence per fine-tuning run and task whose test set it has seen something of."""
    return list(dict.fromkeys(f"{leak.sentence()}." for group in lines for leak in group.leaks))


def failure_lines(failures: Sequence[Outcome]) -> list[str]:
    """Returns ``label: error`` of every failed unit, each on one line."""
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
    """Returns the parameters that all tuned lines share, which their titles therefore leave out."""
    vary = {*varying_params(lines), "alpha"}
    params = next((group.params for group in lines if group.role != "pre-trained"), {})
    return ", ".join(
        f"{name} {format_value(value)}" for name, value in params.items() if name not in vary
    )


def one_line(text: str) -> str:
    """Returns the text on one line without control characters, so that no name can steer a
    terminal."""
    return "".join(
        character if character.isprintable() else "�" for character in " ".join(text.split())
    )


def _md(text: str) -> str:
    text = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", text)


def _md_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
