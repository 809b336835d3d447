"""Corpus ``fluent_speech_commands``: commands to a smart home (SUPERB's IC), as its archive
unpacks.

``<root>/data/{train,valid,test}_data.csv`` with the columns path, speakerId, transcription, action,
object and location; recordings at ``<root>/<path>``. Splits share no speakers. s3prl has no quirk
here.
"""

from __future__ import annotations

import csv
from pathlib import Path

from speechft_ray.core.errors import UserError
from speechft_ray.speech.corpora._layout import (
    DiskOptions,
    Recording,
    assemble,
    bad_line,
    join_names,
    read_lines,
    require_root,
)
from speechft_ray.speech.corpora.base import CORPORA, Corpus, CorpusKind, ExpectedCounts, Progress

NAME = "fluent_speech_commands"
_TABLES = {
    "train": "data/train_data.csv",
    "dev": "data/valid_data.csv",
    "test": "data/test_data.csv",
}
_COLUMNS = {
    "action": "action",
    "object": "object",
    "location": "location",
    "transcription": "text",
    "speakerId": "speaker",
}


class FluentSpeechCommandsOptions(DiskOptions):
    """The splits are those of the release."""


def open_fluent_speech_commands(
    options: FluentSpeechCommandsOptions,
    root: Path | None,
    cache: Path,
    progress: Progress | None = None,
) -> Corpus:
    """Returns Fluent Speech Commands with the columns ``action``, ``object``, ``location``,
    ``text`` and ``speaker``.

    Raises ``UserError`` for a missing table or column and for a row with empty cells.
    """
    place = require_root(NAME, root, [*_TABLES.values(), "wavs"])
    recordings = [
        item for split, table in _TABLES.items() for item in _read_rows(place / table, split)
    ]
    return assemble(NAME, place, recordings, options, cache, progress)


def _read_rows(file: Path, split: str) -> list[Recording]:
    if not file.is_file():
        raise UserError(f"the corpus `{NAME}` lacks {file} (its split {split}): unpack it there.")
    lines = read_lines(file)
    table = csv.DictReader(lines)
    needed = ("path", *_COLUMNS)
    if missing := [name for name in needed if name not in (table.fieldnames or ())]:
        raise UserError(
            f"{file} lacks the columns {join_names(missing)}: take the table of the original "
            "archive."
        )
    recordings = []
    for number, row in enumerate(table, start=2):
        cells = {name: (row[name] or "").strip() for name in needed}
        if not all(cells.values()):
            raise bad_line(file, number, lines[number - 1], "a row with all cells filled")
        labels = {label: cells[column] for column, label in _COLUMNS.items()}
        path = cells["path"]
        recordings.append(Recording(key=path, path=path, split=split, labels=labels))
    return recordings


def _compute_expected(options: FluentSpeechCommandsOptions) -> ExpectedCounts:
    return ExpectedCounts(
        source="Lugosch et al. 2019, table 1",
        utterances={"train": 23_132, "dev": 3_118, "test": 3_793},
        hours={"train": 14.7, "dev": 1.9, "test": 2.4},
        speakers={"train": 77, "dev": 10, "test": 10},
        classes={"action": 6, "object": 14, "location": 4},
    )


CORPORA.register(
    NAME,
    CorpusKind(
        options=FluentSpeechCommandsOptions,
        open=open_fluent_speech_commands,
        needs_root=True,
        layout="data/{train,valid,test}_data.csv and wavs/speakers/SPEAKER/*.wav",
        expected=_compute_expected,
    ),
)
