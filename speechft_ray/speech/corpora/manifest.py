"""Corpus ``manifest``: anyone's own recordings, listed in a tab-separated file.

The first line names the columns: ``path`` (relative to the manifest's folder), ``split`` (train, dev or test) and any label
columns (``speaker``, ``text``, ``emotion``, ...). ``seconds`` and ``sample_rate_hz`` may be there for people to read; the
audio's own header counts.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from speechft_ray.core.errors import SpecError, UserError
from speechft_ray.core.fingerprint import file_sha256, fingerprint
from speechft_ray.speech.audio import read_audio, resolve_inside, samples_at_16_khz
from speechft_ray.speech.corpora.base import CORPORA, SPLITS, Corpus, CorpusKind, Progress, Utterance

DEFAULT_NAME = "manifest.tsv"
_NEEDED = ("path", "split")
_NOT_LABELS = frozenset({"path", "split", "seconds", "sample_rate_hz"})
_TOLD = 5
_THREADS = 8


class ManifestOptions(BaseModel):
    """Nothing to choose: the recordings and their labels are the identity."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a manifest. ``line`` counts from 1, the header being line 1."""

    line: int
    path: str
    split: str
    labels: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Fact:
    """What is known of one audio file: samples at 16 kHz and content, valid while size and time of change stay."""

    size_bytes: int
    modified_ns: int
    samples: int
    sha256: str


def open_manifest(options: ManifestOptions, root: Path | None, cache: Path, progress: Progress | None = None) -> Corpus:
    """Returns the corpus of a manifest: ``root`` is the file or the folder that holds ``manifest.tsv``.

    Utterances are in order of their paths, and the fingerprint covers every row and every audio file's bytes; the order of the
    rows changes neither. What was measured of the audio is kept in ``cache``, so that a second open reads no audio.
    Raises ``UserError`` with all mistakes at once (the first five of each kind).
    """
    if root is None:
        raise UserError("the corpus `manifest` needs a root: the path of a manifest.tsv or of its folder.")
    file = root / DEFAULT_NAME if root.is_dir() else root
    rows = read_rows(file)
    folder = file.parent
    facts = _facts(file, rows, cache, progress)
    ordered = sorted(rows, key=lambda row: row.path)
    utterances = [
        Utterance(key=row.path, split=row.split, samples=facts[row.path].samples, labels=row.labels) for row in ordered
    ]

    def read(utterance: Utterance) -> np.ndarray:
        wave = read_audio(utterance.key, folder)
        if len(wave) != utterance.samples:
            raise UserError(f"{folder / utterance.key} has changed since the corpus was opened. Start again.")
        return wave

    return Corpus(
        name=f"manifest/{folder.resolve().name}",
        fingerprint=fingerprint([[row.path, row.split, dict(row.labels), facts[row.path].sha256] for row in ordered]),
        utterances=utterances,
        read=read,
        columns=frozenset(ordered[0].labels),
    )


def read_rows(file: Path) -> list[Row]:
    """Returns the rows of a manifest. Raises ``SpecError`` with all mistakes of its text; audio is not looked at."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the manifest {file} cannot be read as UTF-8 text: {error}.") from error
    lines = [line.rstrip("\r").split("\t") for line in text.split("\n")]
    header = [name.strip() for name in lines[0]]
    mistakes = [("line 1", f"the column `{name}` is missing") for name in _NEEDED if name not in header]
    mistakes += [
        ("line 1", f"the column `{name}` is named {count} times") for name, count in Counter(header).items() if count > 1
    ]
    if mistakes:
        raise SpecError(f"the manifest {file}", mistakes)
    rows, wrong = [], _Mistakes()
    for number, cells in enumerate(lines[1:], start=2):
        if cells == [""]:
            continue
        if len(cells) != len(header):
            wrong.add("cells", f"line {number}", f"has {len(cells)} cells where the header has {len(header)} columns")
            continue
        named = dict(zip(header, cells, strict=True))
        labels = {name: cell for name, cell in named.items() if name not in _NOT_LABELS}
        rows.append(Row(line=number, path=named["path"], split=named["split"], labels=labels))
    _check_rows(rows, wrong)
    wrong.raise_if_any(file)
    if not rows:
        raise UserError(f"the manifest {file} has no rows: list at least one recording below the header.")
    return rows


class _Mistakes:
    """Mistakes by kind; the first five of each are told, the rest counted."""

    def __init__(self) -> None:
        self._by_kind: dict[str, list[tuple[str, str]]] = {}

    def add(self, kind: str, where: str, sentence: str) -> None:
        self._by_kind.setdefault(kind, []).append((where, sentence))

    def raise_if_any(self, file: Path) -> None:
        told: list[tuple[str, str]] = []
        for found in self._by_kind.values():
            told += found[:_TOLD]
            if len(found) > _TOLD:
                told.append((f"and {len(found) - _TOLD} more lines", f"like {found[0][0]}"))
        if told:
            raise SpecError(f"the manifest {file}", told)


def _check_rows(rows: Sequence[Row], wrong: _Mistakes) -> None:
    first_line: dict[str, int] = {}
    for row in rows:
        if row.split not in SPLITS:
            wrong.add("split", f"line {row.line}", f"`split` must be one of {', '.join(SPLITS)}, but is `{row.split}` instead")
        if not row.path:
            wrong.add("path", f"line {row.line}", "`path` is empty")
        elif first_line.setdefault(row.path, row.line) != row.line:
            wrong.add("twice", f"line {row.line}", f"`{row.path}` is already on line {first_line[row.path]}")


def _facts(file: Path, rows: Sequence[Row], cache: Path, progress: Progress | None) -> dict[str, Fact]:
    """Measures every audio file, or finds it measured. Raises ``SpecError`` with the files that cannot be used."""
    store = cache / f"manifest-{fingerprint(str(file.resolve()))}.json"
    known, found, wrong = _load(store), {}, _Mistakes()
    with ThreadPoolExecutor(max_workers=_THREADS) as threads:
        measured = threads.map(lambda row: _measure(file.parent, row.path, known.get(row.path)), rows)
        for done, (row, fact) in enumerate(zip(rows, measured, strict=True), start=1):
            if isinstance(fact, Fact):
                found[row.path] = fact
            else:
                wrong.add("audio", f"line {row.line}", fact)
            if progress is not None:
                progress(done, len(rows))
    wrong.raise_if_any(file)
    if found != known:
        _save(store, found)
    return found


def _measure(folder: Path, path: str, known: Fact | None) -> Fact | str:
    try:
        place = resolve_inside(folder, path)
        state = place.stat()
        if known is not None and (known.size_bytes, known.modified_ns) == (state.st_size, state.st_mtime_ns):
            return known
        samples = samples_at_16_khz(place)
        return Fact(size_bytes=state.st_size, modified_ns=state.st_mtime_ns, samples=samples, sha256=file_sha256(place))
    except FileNotFoundError:
        return f"the file `{path}` does not exist"
    except (UserError, OSError) as error:
        return str(error)


def _load(store: Path) -> dict[str, Fact]:
    try:
        return {path: Fact(**fields) for path, fields in json.loads(store.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError):  # absent, or not ours: everything is measured again
        return {}


def _save(store: Path, facts: Mapping[str, Fact]) -> None:
    store.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=store.parent, prefix=".facts-", delete=False, encoding="utf-8") as file:
        json.dump({path: vars(fact) for path, fact in facts.items()}, file)
    Path(file.name).replace(store)


CORPORA.register("manifest", CorpusKind(options=ManifestOptions, open=open_manifest, needs_root=True))
