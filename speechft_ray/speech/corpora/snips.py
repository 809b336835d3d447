"""Corpus ``snips``: Audio SNIPS, requests to an assistant in synthetic voices (SUPERB's SF).

The layout is that of s3prl's preprocessing:
``<root>/{train,valid,test}/<Speaker>-snips-<split>-<n>.wav``; ``<root>/all.iob.snips.txt`` with
lines ``<name> BOS W1 ... EOS <tab> O l1 ... intent``; ``<root>/slots.txt`` with one slot per line,
``O`` first. Words are upper case. Every word has one label, a slot or ``O``, without B- and I-
prefixes. Each voice is in one split only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from pathlib import Path

from pydantic import model_validator

from speechft_ray.core.errors import UserError
from speechft_ray.speech.corpora._disk import list_tree
from speechft_ray.speech.corpora._layout import (
    DiskOptions,
    Recording,
    assemble,
    bad_line,
    below,
    join_names,
    read_lines,
    require_folder,
    require_root,
)
from speechft_ray.speech.corpora.base import CORPORA, Corpus, CorpusKind, ExpectedCounts, Progress

NAME = "snips"
TEXTS, SLOTS = "all.iob.snips.txt", "slots.txt"
_FOLDERS = {"train": "train", "dev": "valid", "test": "test"}


class SnipsOptions(DiskOptions):
    """Voices of each split (s3prl ``ctc/snips.yaml``)."""

    train_speakers: tuple[str, ...] = (
        "Ivy",
        "Joanna",
        "Joey",
        "Justin",
        "Kendra",
        "Kimberly",
        "Matthew",
        "Salli",
    )
    dev_speakers: tuple[str, ...] = ("Aditi", "Amy", "Geraint", "Nicole")
    test_speakers: tuple[str, ...] = ("Brian", "Emma", "Raveena", "Russell")

    @model_validator(mode="after")
    def _check(self) -> SnipsOptions:
        speakers = [*self.train_speakers, *self.dev_speakers, *self.test_speakers]
        if len(set(speakers)) < len(speakers):
            raise ValueError(
                "`train_speakers`, `dev_speakers` and `test_speakers` must name every speaker once"
            )
        return self


def open_snips(
    options: SnipsOptions, root: Path | None, cache: Path, progress: Progress | None = None
) -> Corpus:
    """Returns Audio SNIPS with the columns ``text``, ``slots`` (one per word), ``intent`` and
    ``speaker``.

    Recordings without a line in the text file are left out and counted. Raises ``UserError`` for a
    missing file, folder or speaker, and for a line without one label per word.
    """
    place = require_root(NAME, root, [TEXTS, SLOTS])
    labels = _read_labels(place)
    recordings, unlabelled, missing = [], 0, 0
    for split, name in _FOLDERS.items():
        folder = require_folder(NAME, place, name, f"its split {split}")
        speakers = set(getattr(options, f"{split}_speakers"))
        paths = [path for path in list_tree(folder, ".wav") if path.stem.split("-")[0] in speakers]
        if silent := sorted(speakers - {path.stem.split("-")[0] for path in paths}):
            raise UserError(
                f"{folder} has no recording of {join_names(silent)}: name other speakers in "
                f"`{split}_speakers`."
            )
        unlabelled += sum(path.stem not in labels for path in paths)
        missing += len(_select_names(labels, split, speakers) - {path.stem for path in paths})
        recordings += [
            _make_recording(place, path, split, labels) for path in paths if path.stem in labels
        ]
    notes = []
    if unlabelled:
        notes.append(f"{unlabelled} recordings have no line in {TEXTS} and are left out.")
    if missing:
        notes.append(f"{missing} lines in {TEXTS} have no recording, of these speakers alone.")
    return assemble(NAME, place, recordings, options, cache, progress, notes=notes)


def _select_names(labels: Iterable[str], split: str, speakers: Set[str]) -> set[str]:
    """Returns the recordings of a split that the text file has: ``Aditi-snips-train-0``."""
    parts = ((name, name.split("-")) for name in labels)
    return {
        name for name, words in parts if words[0] in speakers and words[2:3] == [_FOLDERS[split]]
    }


def _make_recording(
    root: Path, path: Path, split: str, labels: Mapping[str, Mapping[str, str]]
) -> Recording:
    place = below(root, path)
    return Recording(
        key=place,
        path=place,
        split=split,
        labels={**labels[path.stem], "speaker": path.stem.split("-")[0]},
    )


def _read_labels(root: Path) -> dict[str, dict[str, str]]:
    """Returns text, slots and intent of each recording by its name."""
    for name in (TEXTS, SLOTS):
        if not (root / name).is_file():
            raise UserError(
                f"the corpus `{NAME}` lacks {root / name}: s3prl's preprocessing of Audio SNIPS "
                "makes it."
            )
    allowed = {line.strip() for line in read_lines(root / SLOTS)} | {"O"}
    labels: dict[str, dict[str, str]] = {}
    for number, line in enumerate(read_lines(root / TEXTS), start=1):
        text, _, tags = line.partition("\t")
        name, *words = text.split()
        slots = tags.split()
        if len(words) != len(slots) or words[:1] != ["BOS"] or words[-1] != "EOS" or len(words) < 3:
            raise bad_line(
                root / TEXTS,
                number,
                line,
                "`NAME BOS words EOS<tab>O labels intent` with one label per word",
            )
        if unknown := sorted(set(slots[1:-1]) - allowed):
            raise UserError(
                f"{root / TEXTS} line {number} has the slots {join_names(unknown)}, which {SLOTS} "
                "does not list."
            )
        labels[name] = {
            "text": " ".join(words[1:-1]),
            "slots": " ".join(slots[1:-1]),
            "intent": slots[-1],
        }
    return labels


def _compute_expected(options: SnipsOptions) -> ExpectedCounts | None:
    speakers = {split: len(getattr(options, f"{split}_speakers")) for split in _FOLDERS}
    each = {"train": 13_084, "dev": 700, "test": 700}
    return ExpectedCounts(
        source="Coucke et al. 2018's split of SNIPS, spoken once by every voice",
        utterances={split: each[split] * count for split, count in speakers.items()},
        speakers=speakers,
        classes={"intent": 7},
    )


CORPORA.register(
    NAME,
    CorpusKind(
        options=SnipsOptions,
        open=open_snips,
        needs_root=True,
        layout=f"train/, valid/, test/ with SPEAKER-snips-SPLIT-N.wav; {TEXTS}; {SLOTS}",
        expected=_compute_expected,
    ),
)
