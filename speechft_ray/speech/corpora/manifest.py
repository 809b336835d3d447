"""Corpus ``manifest``: recordings of the user, listed in a tab-separated file.

The first line names the columns: ``path`` (relative to the manifest's folder), ``split`` (train,
dev or test) and any label columns (``speaker``, ``text``, ``emotion``, ...). ``seconds`` and
``sample_rate_hz`` may be there for people to read; the audio's own header counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speechft_ray.core.errors import SpecError, UserError
from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.speech.audio import read_audio
from speechft_ray.speech.corpora._files import measure
from speechft_ray.speech.corpora._layout import DiskOptions, describe_conversions, describe_skipped
from speechft_ray.speech.corpora.base import (
    CORPORA,
    SPLITS,
    Corpus,
    CorpusKind,
    Progress,
    Utterance,
)

DEFAULT_NAME = "manifest.tsv"
_NEEDED = ("path", "split")
_NOT_LABELS = frozenset({"path", "split", "seconds", "sample_rate_hz"})
_MAX_MISTAKES = 5


class ManifestOptions(DiskOptions):
    """No options but ``on_bad_audio``: the recordings and their labels are the identity."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a manifest. ``line`` counts from 1, the header being line 1."""

    line: int
    path: str
    split: str
    labels: Mapping[str, str]


def open_manifest(
    options: ManifestOptions, root: Path | None, cache: Path, progress: Progress | None = None
) -> Corpus:
    """Returns the corpus of a manifest; ``root`` is the file or a folder with a ``manifest.tsv``.

    Utterances are in the order of their paths, and the fingerprint covers every row and the bytes
    of every file; the order of the rows changes neither. Facts of the files are cached in
    ``cache``, so that a second open reads no audio. Raises ``UserError`` with all mistakes at once
    (the first five of each kind).
    """
    if root is None:
        raise UserError(
            "the corpus `manifest` needs a root: the path of a manifest.tsv or of its folder."
        )
    file = root / DEFAULT_NAME if root.is_dir() else root
    rows = read_rows(file)
    folder = file.parent
    facts, faults = measure(folder, [row.path for row in rows], cache, progress, name="manifest")
    if options.on_bad_audio == "fail":
        _check_audio(file, rows, faults)
    ordered = sorted((row for row in rows if row.path in facts), key=lambda row: row.path)
    utterances = [
        Utterance(key=row.path, split=row.split, samples=facts[row.path].samples, labels=row.labels)
        for row in ordered
    ]

    def read(utterance: Utterance) -> np.ndarray:
        wave = read_audio(utterance.key, folder)
        if len(wave) != utterance.samples:
            raise UserError(
                f"{folder / utterance.key} has changed since the corpus was opened. Start again."
            )
        return wave

    return Corpus(
        name=f"manifest/{folder.resolve().name}",
        fingerprint=fingerprint(
            [[row.path, row.split, dict(row.labels), facts[row.path].sha256] for row in ordered]
        ),
        utterances=utterances,
        read=read,
        columns=frozenset(rows[0].labels),
        notes=(*describe_conversions(facts.values()), *describe_skipped(faults)),
        skipped=dict(Counter(row.split for row in rows if row.path in faults)),
        audio_ids={row.path: facts[row.path].sha256 for row in ordered},
    )


def read_rows(file: Path) -> list[Row]:
    """Returns the rows of a manifest without a look at the audio.

    Raises ``SpecError`` with all mistakes of the text.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the manifest {file} cannot be read as UTF-8 text: {error}.") from error
    lines = [line.rstrip("\r").split("\t") for line in text.split("\n")]
    header = [name.strip() for name in lines[0]]
    mistakes = [
        ("line 1", f"the column `{name}` is missing") for name in _NEEDED if name not in header
    ]
    mistakes += [
        ("line 1", f"the column `{name}` is named {count} times")
        for name, count in Counter(header).items()
        if count > 1
    ]
    if mistakes:
        raise SpecError(f"the manifest {file}", mistakes)
    rows, wrong = [], _Mistakes()
    for number, cells in enumerate(lines[1:], start=2):
        if cells == [""]:
            continue
        if len(cells) != len(header):
            wrong.add(
                "cells",
                f"line {number}",
                f"has {len(cells)} cells where the header has {len(header)} columns",
            )
            continue
        named = dict(zip(header, cells, strict=True))
        labels = {name: cell for name, cell in named.items() if name not in _NOT_LABELS}
        rows.append(Row(line=number, path=named["path"], split=named["split"], labels=labels))
    _check_rows(rows, wrong)
    wrong.raise_if_any(file)
    if not rows:
        raise UserError(
            f"the manifest {file} has no rows: list at least one recording below the header."
        )
    return rows


class _Mistakes:
    """Mistakes by kind; an error has the first five of each and counts the rest."""

    def __init__(self) -> None:
        self._by_kind: dict[str, list[tuple[str, str]]] = {}

    def add(self, kind: str, where: str, sentence: str) -> None:
        self._by_kind.setdefault(kind, []).append((where, sentence))

    def raise_if_any(self, file: Path) -> None:
        shown: list[tuple[str, str]] = []
        for mistakes in self._by_kind.values():
            shown += mistakes[:_MAX_MISTAKES]
            if (more := len(mistakes) - _MAX_MISTAKES) > 0:
                shown.append((f"and {more} more lines", f"like {mistakes[0][0]}"))
        if shown:
            raise SpecError(f"the manifest {file}", shown)


def _check_rows(rows: Sequence[Row], wrong: _Mistakes) -> None:
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
        elif first_line.setdefault(row.path, row.line) != row.line:
            wrong.add(
                "twice",
                f"line {row.line}",
                f"`{row.path}` is already on line {first_line[row.path]}",
            )


def _check_audio(file: Path, rows: Sequence[Row], faults: Mapping[str, str]) -> None:
    wrong = _Mistakes()
    for row in rows:
        if row.path in faults:
            wrong.add("audio", f"line {row.line}", faults[row.path])
    wrong.raise_if_any(file)


CORPORA.register(
    "manifest",
    CorpusKind(
        options=ManifestOptions,
        open=open_manifest,
        needs_root=True,
        layout="a tab-separated file with the columns path, split and any labels; "
        "paths relative to its folder",
    ),
)
