"""The table as CSV, Markdown and on a terminal: every format is read back."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace

from rich.console import Console

from speechft_ray.core.metrics import METRICS
from speechft_ray.report.lines import group_rows, metric_names
from speechft_ray.report.table import csv_table, failure_lines, markdown_table, terminal_table
from speechft_ray.sweep.protocols import Leak
from tests.report.report_data import (
    EVIL,
    FAILURE,
    REFERENCES,
    ROWS,
    make_report_data,
    make_row,
)


def test_csv_reads_back_unrounded() -> None:
    lines = group_rows(ROWS)
    table = list(csv.DictReader(io.StringIO(csv_table(lines))))
    assert [item["title"] for item in table] == [group.title for group in lines]
    best = next(item for item in table if item["chosen"] == "1")
    assert float(best["score"]) == lines[1].mean["score"]
    assert float(best["pr.per.spread"]) == lines[1].spread["pr.per"]
    assert (best["alpha"], best["method"], best["finetune"], best["seeds"]) == (
        "0.25",
        "linear",
        "phones",
        "3",
    )
    assert table[-1]["score"] == ""
    assert "missing" in table[-1] and "ER ACC" in table[-1]["missing"]


def test_markdown_reads_back_and_names_cannot_leave_their_cell() -> None:
    rows = [*ROWS, make_row(0.1, 0, 600.0, dev=1.0, finetune=EVIL)]
    lines = group_rows(rows)
    text = markdown_table(EVIL, lines, [FAILURE], REFERENCES)
    table = [
        re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("|")
    ]
    assert {len(cells) for cells in table} == {5 + len(metric_names(lines))}
    assert len(table) == len(lines) + 2
    scores = [cells[3].strip() for cells in table[2:]]
    assert scores[:2] == ["881.00 ± 1.41", "877.33 ± 1.53"]
    assert "<script" not in text and "\x1b" not in text
    assert "evaluate er alpha=0.75: out of memory" in text


def test_failures_are_one_line_each() -> None:
    assert failure_lines([FAILURE]) == ["evaluate er alpha=0.75: out of memory"]


def test_the_terminal_table_fits_one_hundred_columns_and_loses_no_control() -> None:
    rows = [
        *ROWS,
        *(
            make_row(
                0.3 + i / 100, 0, i, dev=1.0, anchor_penalty=0.00123, finetune="a-long-name" * 4
            )
            for i in range(30)
        ),
    ]
    every_metric = {name: metric.sota or 50.0 for name, metric in METRICS.items()}
    crowded = [replace(row, test={**row.test, **every_metric}) for row in rows]
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(terminal_table(group_rows(crowded)))
    text = console.export_text()
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 100
    assert "…" not in text
    assert "pre-trained" in text and "stable fine-tuning" in text and "★" in text
    assert re.search(r"In table.csv: \d+ more lines, \d+ more metrics", " ".join(text.split()))


def test_the_terminal_marks_leaks_as_the_markdown_table_does() -> None:
    leak = Leak("phones", "er", 3, 400, 5, 10)
    leaks = {row.key: [leak] for row in ROWS if row.params["alpha"] == 0.25}
    full = make_row(0.4, 0, 800.0, dev=1.0)
    full = replace(full, test={**full.test, "er.accuracy": 100.0})
    data = make_report_data(rows=[*ROWS, full], leaks={**leaks, full.key: [leak]})
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(terminal_table(data.lines))
    text = console.export_text()
    markdown = markdown_table("m", data.lines, [], REFERENCES)
    assert text.count("†") == 4 and "100.00†" in text  # the score and ER ACC of two lines
    assert text.count("†") == sum(line.count("†") for line in markdown.splitlines() if "|" in line)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 100
