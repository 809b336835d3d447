"""Reads the rows of a manifest: tab-separated text, or what spreadsheets and pandas write.

The header decides the separator: the tab, or else a comma or a semicolon where the columns ``path``
and ``split`` are then in it. Cells of a tab-separated file are taken as they are, but a cell that
is quoted because it holds a quote, a tab or a line end (pandas and the csv module quote no other)
is unquoted. Comma- and semicolon-separated files are quoted by the rules of the csv module.
"""

from __future__ import annotations

import csv
import posixpath
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from speechft_ray.core.errors import SpecError, UserError
from speechft_ray.speech.corpora._disk import read_text
from speechft_ray.speech.corpora.base import SPLITS

_NEEDED = ("path", "split")
_NOT_LABELS = frozenset({"path", "split", "seconds", "sample_rate_hz"})
_MAX_MISTAKES = 5
_QUOTED = re.compile(r'"(?:[^"]|"")*"')

Lines = list[tuple[int, list[str]]]
"""Cells of each row with the number of its line."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a manifest. ``line`` counts from 1, the header being line 1."""

    line: int
    path: str
    split: str
    labels: Mapping[str, str]
    """Without surrounding blanks, and without columns that have no name."""
    cells: Mapping[str, str]
    """Labels as they are written: part of identity."""


class Mistakes:
    """Mistakes by kind; an error has the first five of each and counts the rest."""

    def __init__(self) -> None:
        self._by_kind: dict[str, list[tuple[str, str]]] = {}

    def add(self, kind: str, where: str, sentence: str) -> None:
        """Adds one mistake."""
        self._by_kind.setdefault(kind, []).append((where, sentence))

    def raise_if_any(self, file: Path) -> None:
        """Raises ``SpecError`` with all mistakes."""
        shown: list[tuple[str, str]] = []
        for mistakes in self._by_kind.values():
            shown += mistakes[:_MAX_MISTAKES]
            if (more := len(mistakes) - _MAX_MISTAKES) > 0:
                shown.append((f"and {more} more lines", f"like {mistakes[0][0]}"))
        if shown:
            raise SpecError(f"the manifest {file}", shown)


def read_rows(file: Path) -> list[Row]:
    """Returns the rows of a manifest without a look at the audio.

    Raises ``SpecError`` with all mistakes of the text.
    """
    text = read_text(file)
    separator = _find_separator(text)
    header, lines, wrong = _split_table(text, separator)
    mistakes = [
        ("line 1", f"the column `{name}` is missing") for name in _NEEDED if name not in header
    ]
    mistakes += [
        ("line 1", f"the column `{name}` is named {count} times")
        for name, count in Counter(header).items()
        if count > 1 and name
    ]
    if mistakes:
        raise SpecError(f"the manifest {file}", mistakes)
    rows = []
    for number, cells in lines:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            wrong.add(
                "cells",
                f"line {number}",
                f"has {len(cells)} cells where the header has {len(header)} columns",
            )
            continue
        rows.append(_make_row(number, dict(zip(header, cells, strict=True))))
    _check_rows(rows, wrong)
    wrong.raise_if_any(file)
    if not rows:
        raise UserError(
            f"the manifest {file} has no rows: list at least one recording below the header."
        )
    return rows


def _make_row(number: int, named: Mapping[str, str]) -> Row:
    cells = {name: cell for name, cell in named.items() if name not in _NOT_LABELS}
    return Row(
        line=number,
        path=named["path"].strip(),
        split=named["split"].strip(),
        labels={name: cell.strip() for name, cell in cells.items() if name},
        cells=cells,
    )


def _find_separator(text: str) -> str:
    """Returns the separator with which the header has the needed columns; the tab if none has."""
    first = text.partition("\n")[0]
    for separator in "\t,;":
        names = {name.strip() for name in first.replace('"', "").split(separator)}
        if names.issuperset(_NEEDED):
            return separator
    return "\t"


def _split_table(text: str, separator: str) -> tuple[list[str], Lines, Mistakes]:
    """Returns the names of the columns, the rows, and what is wrong with the quoting."""
    wrong = Mistakes()
    raw = [
        (number, line.rstrip("\r").split(separator))
        for number, line in enumerate(text.split("\n"), start=1)
    ]
    header = [name.strip() for name in raw[0][1]]
    is_quoted = separator != "\t" or all(_QUOTED.fullmatch(name) for name in header)
    has_all_cells = all(
        len(cells) == len(header) or not any(map(str.strip, cells)) for _, cells in raw
    )
    if not is_quoted and has_all_cells:
        return header, [(number, list(map(_unquote, cells))) for number, cells in raw[1:]], wrong
    rows, mistake = _read_quoted(text, separator)
    if rows and (is_quoted or all(len(cells) == len(header) for _, cells in rows if cells)):
        if mistake:
            wrong.add("quotes", *mistake)
        return [name.strip() for name in rows[0][1]], rows[1:], wrong
    return header, raw[1:], wrong


def _read_quoted(text: str, separator: str) -> tuple[Lines, tuple[str, str] | None]:
    """Returns the rows by the rules of the csv module, and where they end too early and why."""
    reader = csv.reader(
        (f"{line}\n" for line in text.split("\n")),
        delimiter=separator,
        skipinitialspace=separator != "\t",
        strict=True,
    )
    rows: Lines = []
    while True:
        number = reader.line_num + 1
        try:
            rows.append((number, next(reader)))
        except StopIteration:
            return rows, None
        except csv.Error as error:
            return rows, (f"line {number}", f"is quoted wrongly: {error}")


def _unquote(cell: str) -> str:
    """Returns a cell without the quotes that a quote inside it needs."""
    inside = cell[1:-1]
    return inside.replace('""', '"') if '""' in inside and _QUOTED.fullmatch(cell) else cell


def _check_rows(rows: Sequence[Row], wrong: Mistakes) -> None:
    first_line: dict[str, int] = {}
    for row in rows:
        if row.split not in SPLITS:
            wrong.add(
                "split",
                f"line {row.line}",
                f"`split` must be one of {', '.join(SPLITS)}, but is `{row.split}` instead",
            )
        if not row.path:
            wrong.add("path", f"line {row.line}", "`path` is empty")
        elif (line := first_line.setdefault(posixpath.normpath(row.path), row.line)) != row.line:
            wrong.add("twice", f"line {row.line}", f"`{row.path}` is already on line {line}")
