"""A sqlite database of MLflow that is damaged is set aside, so that a new one takes its place."""

from __future__ import annotations

import itertools
import sqlite3
from contextlib import closing
from pathlib import Path

JOURNALS = ("", "-wal", "-shm", "-journal")
"""Ends of the names of the files that belong to a database (sqlite.org/tempfiles.html)."""


def set_damaged_aside(database: Path, folder: Path) -> Path | None:
    """Moves a damaged database into ``folder`` and returns its new place; ``None`` for one that is
    missing, healthy, or locked. Raises ``OSError`` where it cannot be moved."""
    if not is_damaged(database):
        return None
    folder.mkdir(parents=True, exist_ok=True)
    names = (f"{database.name}-{number}" for number in itertools.count(1))
    name = next(name for name in names if not (folder / name).exists())
    for end in JOURNALS:
        file = database.with_name(database.name + end)
        if file.exists():
            file.rename(folder / (name + end))
    return folder / name


def is_damaged(database: Path) -> bool:
    """Whether sqlite finds damage in the pages of a database: one that was cut, overwritten, or is
    no database."""
    if not database.is_file():
        return False
    try:
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as file:
            return bool(file.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok")
    except sqlite3.OperationalError:  # locked, or cannot be opened
        return False
    except sqlite3.DatabaseError:
        return True
