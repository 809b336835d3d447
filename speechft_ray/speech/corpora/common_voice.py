"""Corpus ``common_voice``: Mandarin read by volunteers, Common Voice 7.0 zh-CN (SUPERB's Chinese
ASR), as its archive unpacks.

``<root>/zh-CN/{train,dev,test}.tsv`` with the columns client_id, path and sentence;
``<root>/zh-CN/clips/<path>``. A ``.wav`` at 16 kHz beside a ``.mp3`` (s3prl's ``downsample_cv.py``
makes it) is read in its place; otherwise libsndfile decodes the mp3.

Sentences are normalised as in s3prl's ``common_voice_preprocess.py``: NFKC, upper case, punctuation
and blanks away; sentences with a Latin letter, an apostrophe or one of a few stray characters are
left out. Punctuation is ASCII's and all that Unicode calls so, where s3prl has a list of its own.
"""

from __future__ import annotations

import csv
import string
import unicodedata
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
from speechft_ray.speech.corpora.base import CORPORA, SPLITS, Corpus, CorpusKind, Progress

NAME = "common_voice"
LANGUAGE = "zh-CN"
STRAY = "ΜИТオカドヤ䴕"
"""Characters whose sentences s3prl leaves out."""
_ALIKE = {"’": "'", "ㄧ": "一"}
_NEEDED = ("path", "sentence", "client_id")


class CommonVoiceOptions(DiskOptions):
    """The splits are the corpus' own."""


def open_common_voice(
    options: CommonVoiceOptions, root: Path | None, cache: Path, progress: Progress | None = None
) -> Corpus:
    """Returns Common Voice zh-CN with the columns ``text`` (characters without blanks) and
    ``speaker`` (a hash).

    Raises ``UserError`` for a missing table or column.
    """
    place = require_root(NAME, root, [LANGUAGE])
    recordings, dropped = [], 0
    for split in SPLITS:
        for clip, sentence, speaker in _rows(place / LANGUAGE / f"{split}.tsv", split):
            text = normalised(sentence)
            if text is None:
                dropped += 1
                continue
            path = _clip(place, clip)
            recordings.append(
                Recording(
                    key=path, path=path, split=split, labels={"text": text, "speaker": speaker}
                )
            )
    notes = (
        [f"{dropped} sentences are left out: empty, with Latin letters or stray characters."]
        if dropped
        else []
    )
    return assemble(NAME, place, recordings, options, cache, progress, notes=notes)


def normalised(sentence: str) -> str | None:
    """Returns the characters of a Chinese sentence, or ``None`` when it is left out."""
    for one, other in _ALIKE.items():
        sentence = sentence.replace(one, other)
    text = unicodedata.normalize("NFKC", sentence).upper()
    text = "".join(
        sign for sign in text if sign == "'" or not (sign.isspace() or _is_punctuation(sign))
    )
    unwanted = set(string.ascii_uppercase) | {"'"} | set(STRAY)
    return None if not text or unwanted & set(text) else text


def _is_punctuation(sign: str) -> bool:
    return sign in string.punctuation or unicodedata.category(sign).startswith("P")


def _rows(file: Path, split: str) -> list[tuple[str, str, str]]:
    if not file.is_file():
        raise UserError(f"the corpus `{NAME}` lacks {file} (its split {split}): unpack it there.")
    lines = read_lines(file)
    table = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    if missing := [name for name in _NEEDED if name not in (table.fieldnames or ())]:
        raise UserError(
            f"{file} lacks the columns {join_names(missing)}: take the table of the original archive."
        )
    found = []
    for number, row in enumerate(table, start=2):
        if not row["path"] or row["sentence"] is None:
            raise bad_line(file, number, lines[number - 1], "a row with a path and a sentence")
        found.append((row["path"], row["sentence"], row["client_id"]))
    return found


def _clip(root: Path, name: str) -> str:
    path = f"{LANGUAGE}/clips/{name}"
    wave = path.removesuffix(".mp3") + ".wav"
    return wave if (root / wave).is_file() else path


CORPORA.register(
    NAME,
    CorpusKind(
        options=CommonVoiceOptions,
        open=open_common_voice,
        needs_root=True,
        layout=f"{LANGUAGE}/ with train.tsv, dev.tsv, test.tsv and clips/*.mp3 or .wav",
    ),
)
