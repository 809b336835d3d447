"""Corpus ``manifest``: recordings of the user, listed in a tab- or comma-separated file.

The first line names the columns: ``path`` (relative to the manifest's folder), ``split`` (train,
dev or test) and any label columns (``speaker``, ``text``, ``emotion``, ...). ``seconds`` and
``sample_rate_hz`` may be there for people to read; the audio's own header counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from speechft_ray.core.errors import UserError
from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.core.units import FRAME_FIELD_SAMPLES
from speechft_ray.speech.audio import read_audio_info, resolve_inside
from speechft_ray.speech.corpora._disk import NameFinder, read_state
from speechft_ray.speech.corpora._files import (
    READ_WHOLE,
    FileFacts,
    Measurements,
    describe_short_clip,
    measure,
)
from speechft_ray.speech.corpora._layout import (
    GO_WITHOUT,
    DiskOptions,
    describe_conversions,
    describe_skipped,
    join_names,
    make_source,
)
from speechft_ray.speech.corpora._reading import RecordingReader
from speechft_ray.speech.corpora._rows import Mistakes, Row, read_rows
from speechft_ray.speech.corpora.base import (
    CORPORA,
    SPLITS,
    AudioSource,
    Corpus,
    CorpusFiles,
    CorpusKind,
    Progress,
    Utterance,
)
from speechft_ray.speech.corpora.labels import (
    describe_alike_labels,
    describe_missing_labels,
    has_classes,
)

DEFAULT_NAMES = ("manifest.tsv", "manifest.csv")
"""Names of a manifest in a folder, in the order of preference."""


class ManifestOptions(DiskOptions):
    """No options but ``on_bad_audio``: the recordings and their labels are the identity."""


def open_manifest(
    options: ManifestOptions, root: Path | None, cache: Path, progress: Progress | None = None
) -> Corpus:
    """Returns the corpus of a manifest; ``root`` is the file or a folder with a ``manifest.tsv`` or
    ``manifest.csv``.

    Utterances are in the order of their paths, and the fingerprint covers every row and the bytes
    of every file; the order of the rows changes neither. Facts of the files are cached in
    ``cache``, so that a second open reads no audio. A path may be spelled in another normal form of
    Unicode than on disk; a link may not leave the folder. Raises ``UserError`` with all mistakes at
    once (the first five of each kind).
    """
    if root is None:
        raise UserError(
            "the corpus `manifest` needs a root: the path of a manifest.tsv or of its folder."
        )
    file = find_manifest(root)
    folder, file_state = file.parent, read_state(file)
    rows = read_rows(file)
    fails = options.on_bad_audio == "fail"
    (facts, faults), places = _measure_rows(folder, rows, cache, progress, is_thorough=not fails)
    for row in rows:
        if row.path in facts and facts[row.path].samples < FRAME_FIELD_SAMPLES:
            samples = facts.pop(row.path).samples
            sentence = describe_short_clip(samples, GO_WITHOUT if fails else "")
            faults[row.path] = f"`{row.path}` {sentence}"
    if fails or not facts:
        _check_audio(file, rows, faults)
    ordered = sorted((row for row in rows if row.path in facts), key=lambda row: row.path)
    utterances = [
        Utterance(key=row.path, split=row.split, samples=facts[row.path].samples, labels=row.labels)
        for row in ordered
    ]

    def source_of(key: str) -> AudioSource:
        return make_source(places.get(key, key), None, facts[key])

    names = [places.get(row.path, row.path) for row in rows if row.path in faults]
    files = CorpusFiles(
        root=folder,
        source_of=source_of,
        stays_inside=True,
        others={file.name: file_state} | {name: read_state(folder / name) for name in names},
    )
    reader = RecordingReader(files)
    return Corpus(
        name=f"manifest/{folder.resolve().name}",
        fingerprint=fingerprint(
            [[row.path, row.split, dict(row.cells), facts[row.path].sha256] for row in ordered]
        ),
        utterances=utterances,
        read=reader.read,
        columns=frozenset(rows[0].labels),
        notes=(
            *describe_conversions(facts),
            *describe_skipped(faults),
            *_describe_copies(ordered, facts),
            *_describe_labels(utterances, sorted(rows[0].labels)),
        ),
        skipped=dict(Counter(row.split for row in rows if row.path in faults)),
        audio_ids={row.path: facts[row.path].sha256 for row in ordered},
        hash_recording=reader.hash,
        files=files,
    )


def find_manifest(root: Path) -> Path:
    """Returns the manifest at a path: the file itself, or the one in that folder.

    A folder without one yields the path of ``manifest.tsv``, which then does not exist.
    """
    if not root.is_dir():
        return root
    names = (name for name in DEFAULT_NAMES if (root / name).is_file())
    return root / next(names, DEFAULT_NAMES[0])


def _measure_rows(
    folder: Path,
    rows: Sequence[Row],
    cache: Path,
    progress: Progress | None,
    *,
    is_thorough: bool,
) -> tuple[Measurements, dict[str, str]]:
    """Returns facts and faults by the paths of the rows, and the path on disk of each file that is
    spelled differently there."""

    def measure_paths(paths: Sequence[str]) -> Measurements:
        name, read_info = (
            ("manifest-whole", READ_WHOLE) if is_thorough else ("manifest", read_audio_info)
        )
        return measure(
            folder,
            paths,
            cache,
            progress,
            name=name,
            read_info=read_info,
            find_place=resolve_inside,
        )

    measurements = measure_paths([row.path for row in rows])
    finder, taken = NameFinder(folder), {row.path for row in rows}
    places: dict[str, str] = {}
    for path in list(measurements.faults):
        place = finder.find(path) or finder.find(path.replace("\\", "/"))
        if place is None or place == path:
            continue
        if place in taken:
            measurements.faults[path] = f"`{path}` is the file `{place}`, which another row names"
            continue
        places[path] = place
        taken.add(place)
    if places:
        again = measure_paths(list(places.values()))
        for path, place in places.items():
            if place in again.facts:
                measurements.facts[path] = again.facts[place]
                del measurements.faults[path]
            else:
                measurements.faults[path] = again.faults[place]
    return measurements, places


def _describe_copies(rows: Sequence[Row], facts: Mapping[str, FileFacts]) -> list[str]:
    """Returns a sentence on the recordings of dev and test that are in another split, too."""
    first: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: SPLITS.index(row.split)):
        first.setdefault(facts[row.path].sha256, row)
    copies = [
        f"{row.path} of {row.split} is {original.path} of {original.split}"
        for row in rows
        if (original := first[facts[row.path].sha256]).split != row.split
    ]
    sentence = (
        f"{len(copies)} recordings are in two splits, byte for byte: {join_names(copies)}. A "
        "metric on what a probe was trained on says nothing about new speech."
    )
    return [sentence] if copies else []


def _describe_labels(utterances: Sequence[Utterance], columns: Sequence[str]) -> list[str]:
    """Returns a sentence for each column with missing labels, or with labels that are alike."""
    notes = []
    for column in columns:
        if missing := describe_missing_labels(utterances, column):
            notes.append(f"{missing}; tasks and heads that read this column refuse the corpus.")
        if has_classes(utterances, column) and (alike := describe_alike_labels(utterances, column)):
            notes.append(f"{alike}.")
    return notes


def _check_audio(file: Path, rows: Sequence[Row], faults: Mapping[str, str]) -> None:
    wrong = Mistakes()
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
        is_list=True,
        layout="a tab- or comma-separated file with the columns path, split and any labels; "
        "paths relative to its folder",
    ),
)
