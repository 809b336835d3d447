"""Corpus ``common_voice``: Mandarin read by volunteers, Common Voice 7.0 zh-CN (SUPERB's Chinese
ASR), as its archive unpacks.

``<root>/zh-CN/{train,dev,test}.tsv`` with the columns client_id, path and sentence;
``<root>/zh-CN/clips/<path>``. A ``.wav`` beside a ``.mp3`` (s3prl's ``downsample_cv.py`` writes it
at 16 kHz) is read instead of it; otherwise libsndfile decodes the mp3.

Sentences are normalised as in s3prl's ``common_voice_preprocess.py``: NFKC, upper case, without
punctuation and blanks. Sentences with a Latin letter, an apostrophe or one of a few stray
characters are left out. Punctuation is that of ASCII and of Unicode's categories; s3prl has a list.
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
"""s3prl leaves out sentences with one of these characters."""
_ALIKE = {"’": "'", "ㄧ": "一"}
_NEEDED = ("path", "sentence", "client_id")


class CommonVoiceOptions(DiskOptions):
    """The splits are those of the release."""


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
        for clip, sentence, speaker in _read_rows(place / LANGUAGE / f"{split}.tsv", split):
            text = normalise_sentence(sentence)
            if text is None:
                dropped += 1
                continue
            path = _find_clip(place, clip)
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


def normalise_sentence(sentence: str) -> str | None:
    """Returns the characters of a Chinese sentence, or ``None`` when it is left out."""
    for one, other in _ALIKE.items():
        sentence = sentence.replace(one, other)
    text = unicodedata.normalize("NFKC", sentence).upper()
    text = "".join(
        sign for sign in text if sign == "'" or not (sign.isspace() or _is_punctuation(sign))
    )
    excluded = set(string.ascii_uppercase) | {"'"} | set(STRAY)
    return None if not text or excluded & set(text) else text


def _is_punctuation(sign: str) -> bool:
    return sign in string.punctuation or unicodedata.category(sign).startswith("P")


def _read_rows(file: Path, split: str) -> list[tuple[str, str, str]]:
    if not file.is_file():
        raise UserError(f"the corpus `{NAME}` lacks {file} (its split {split}): unpack it there.")
    lines = read_lines(file)
    table = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    if missing := [name for name in _NEEDED if name not in (table.fieldnames or ())]:
        raise UserError(
            f"{file} lacks the columns {join_names(missing)}: take the table of the original "
            "archive."
        )
    rows = []
    for number, row in enumerate(table, start=2):
        if not row["path"] or row["sentence"] is None:
            raise bad_line(file, number, lines[number - 1], "a row with a path and a sentence")
        rows.append((row["path"], row["sentence"], row["client_id"]))
    return rows


def _find_clip(root: Path, name: str) -> str:
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
