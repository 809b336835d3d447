"""Corpus ``librispeech``: read English books (SUPERB's PR and ASR), as OpenSLR 12 unpacks them.

``<root>/train-clean-100/<speaker>/<chapter>/<speaker>-<chapter>-<number>.flac`` with one ``<speaker>-<chapter>.trans.txt`` per
chapter. Phones come from two lexicons in ``<root>/lexicon``, read in the order of ``LEXICONS``; the first pronunciation of a
word wins, stress is kept, no silence is put between words (s3prl ``downstream/ctc/corpus/libriphone.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from speechft_ray.core.errors import UserError
from speechft_ray.speech.corpora._g2p import pronunciations
from speechft_ray.speech.corpora._layout import (
    DiskOptions,
    Recording,
    assemble,
    bad_line,
    below,
    found_folder,
    found_root,
    listed,
    read_lines,
)
from speechft_ray.speech.corpora.base import CORPORA, SPLITS, Corpus, CorpusKind, Expected, Extra, Progress

NAME = "librispeech"
LEXICONS = ("lexicon/librispeech-lexicon-200k-g2p.txt", "lexicon/librispeech-lexicon-allothers-g2p.txt")
_LEXICON_PAGE = "https://huggingface.co/datasets/s3prl/g2p/resolve/main"

Folder = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class LibriSpeechOptions(DiskOptions):
    """Which folders are which split."""

    train: tuple[Folder, ...] = ("train-clean-100",)
    dev: tuple[Folder, ...] = ("dev-clean",)
    test: tuple[Folder, ...] = ("test-clean",)
    """Folders of each split (s3prl ``ctc/libriphone.yaml`` and ``asr/config.yaml``)."""
    g2p: Literal["none", "espeak"] = "none"
    """Who pronounces words that the lexicons lack. ``espeak``: espeak-ng, whose phones are mapped to ARPAbet; approximate, so
    numbers are not comparable with published ones where many words need it."""

    @model_validator(mode="after")
    def _check(self) -> LibriSpeechOptions:
        folders = [*self.train, *self.dev, *self.test]
        if len(set(folders)) < len(folders):
            raise ValueError("`train`, `dev` and `test` must name every folder once")
        return self


def open_librispeech(options: LibriSpeechOptions, root: Path | None, cache: Path, progress: Progress | None = None) -> Corpus:
    """Returns LibriSpeech with the columns ``text``, ``speaker`` and, where every word has a pronunciation, ``phones``.

    Without pronunciations the corpus opens all the same; ``absent`` says what ``phones`` needs. Raises ``UserError`` for a
    missing folder and for recordings without a transcript.
    """
    folders = {split: getattr(options, split) for split in SPLITS}
    place = found_root(NAME, root, [folder for split in SPLITS for folder in folders[split]])
    found: list[tuple[Path, str, str]] = []
    for split, names in folders.items():
        for name in names:
            folder = found_folder(NAME, place, name, f"its split {split}")
            found += [(path, split, text) for path, text in _transcribed(folder)]
    phones, lacks, notes = _phones(place, [text for _, _, text in found], options)
    recordings = [
        Recording(
            key=below(place, path),
            path=below(place, path),
            split=split,
            labels={"text": text, "speaker": path.stem.split("-")[0], **({"phones": phones[text]} if phones else {})},
        )
        for path, split, text in found
    ]
    absent = {"phones": lacks} if lacks else {}
    return assemble(NAME, place, recordings, options, cache, progress, absent=absent, notes=notes)


def _transcribed(folder: Path) -> list[tuple[Path, str]]:
    texts: dict[str, str] = {}
    for file in sorted(folder.rglob("*.trans.txt")):
        for number, line in enumerate(read_lines(file), start=1):
            name, _, text = line.partition(" ")
            if not text.strip():
                raise bad_line(file, number, line, "the name of a recording and its words")
            texts[name] = " ".join(text.split())
    audio = sorted(folder.rglob("*.flac"))
    if not audio:
        raise UserError(f"the corpus `{NAME}` has no .flac file below {folder}: unpack it again.")
    if silent := [path.stem for path in audio if path.stem not in texts]:
        raise UserError(f"{len(silent)} recordings below {folder} have no line in any .trans.txt: {listed(silent)}.")
    return [(path, texts[path.stem]) for path in audio]


def read_lexicon(files: Iterable[Path]) -> dict[str, str]:
    """Returns the first pronunciation of each word, phones separated by blanks. Raises ``UserError`` with the line at fault."""
    lexicon: dict[str, str] = {}
    for file in files:
        for number, line in enumerate(read_lines(file), start=1):
            word, *phones = line.split()
            if not phones:
                raise bad_line(file, number, line, "a word and its phones")
            lexicon.setdefault(word, " ".join(phones))
    return lexicon


def _phones(root: Path, texts: Sequence[str], options: LibriSpeechOptions) -> tuple[Mapping[str, str], str, list[str]]:
    """Returns the phones of each text, or none and why; and notes."""
    missing_files = [name for name in LEXICONS if not (root / name).is_file()]
    if missing_files and options.g2p == "none":
        return {}, f"{root} lacks {listed(missing_files)}: put it there, or set `g2p: espeak` (approximate).", []
    lexicon = read_lexicon(root / name for name in LEXICONS if name not in missing_files)
    words = {word for text in texts for word in text.split()}
    unknown = sorted(words - set(lexicon))
    if unknown and options.g2p == "none":
        where = f"{len(unknown)} words have no pronunciation in {root / 'lexicon'} ({listed(unknown)})"
        return {}, f"{where}: add them to a lexicon, or set `g2p: espeak` (approximate).", []
    notes = []
    if unknown:
        lexicon.update(pronunciations(unknown))
        notes.append(f"{len(unknown)} of {len(words)} words are pronounced by espeak-ng ({listed(unknown)}): approximate.")
    return {text: " ".join(lexicon[word] for word in text.split()) for text in dict.fromkeys(texts)}, "", notes


def _expected(options: LibriSpeechOptions) -> Expected | None:
    default = LibriSpeechOptions()
    if any(getattr(options, split) != getattr(default, split) for split in SPLITS):
        return None
    return Expected(
        source="Panayotov et al. 2015, table 1 (hours, speakers); OpenSLR 12 (utterances)",
        utterances={"train": 28_539, "dev": 2_703, "test": 2_620},
        hours={"train": 100.6, "dev": 5.4, "test": 5.4},
        speakers={"train": 251, "dev": 40, "test": 40},
    )


CORPORA.register(
    NAME,
    CorpusKind(
        options=LibriSpeechOptions,
        open=open_librispeech,
        needs_root=True,
        layout="train-clean-100/, dev-clean/, test-clean/ with .flac and .trans.txt; lexicon/ for phones",
        expected=_expected,
        extras=[
            Extra(path=name, url=f"{_LEXICON_PAGE}/{name}", what="pronunciations for the column phones") for name in LEXICONS
        ],
    ),
)
