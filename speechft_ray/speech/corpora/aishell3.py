"""Corpus ``aishell3``: read Mandarin at 44.1 kHz (Speech-FT's continued pre-training), as OpenSLR
93 unpacks it.

``<root>/{train,test}/wav/SSB0005/SSB00050001.wav``; a line of ``<root>/{train,test}/content.txt``
is the name of a recording, a tab, and characters alternating with their pinyin. The release has no
validation set: ``dev_fraction`` of train is dev.
"""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import Field

from speechft_ray.core.errors import UserError
from speechft_ray.speech.corpora._layout import (
    DiskOptions,
    Recording,
    assemble,
    bad_line,
    read_lines,
    require_folder,
    require_root,
)
from speechft_ray.speech.corpora._sampling import shuffle_keys
from speechft_ray.speech.corpora.base import CORPORA, Corpus, CorpusKind, ExpectedCounts, Progress

NAME = "aishell3"
TRAIN_UTTERANCES, TEST_UTTERANCES, TRAIN_HOURS = 63_262, 24_773, 63.17

_NAME = re.compile(r"(SSB\d{4})\d{4}\.wav")
_PINYIN = re.compile(r"[a-zü]+\d", re.IGNORECASE)


class Aishell3Options(DiskOptions):
    """Size and seed of the dev split."""

    dev_fraction: float = Field(default=0.01, gt=0, lt=1)
    """Share of the training utterances that are dev (not published by Speech-FT; one to two per
    cent are usual)."""
    seed: int = Field(default=0, ge=0)
    """Of the random selection."""


def open_aishell3(
    options: Aishell3Options, root: Path | None, cache: Path, progress: Progress | None = None
) -> Corpus:
    """Returns AISHELL-3 with the columns ``text`` (characters without blanks), ``pinyin`` and
    ``speaker``.

    A listed recording without a file counts as bad audio. Raises ``UserError`` for a missing folder
    or list, and for a line of another format.
    """
    place = require_root(NAME, root, ["train/content.txt", "test/content.txt"])
    labels_by_path = {folder: _read_labels(place, folder) for folder in ("train", "test")}
    train = shuffle_keys(labels_by_path["train"], options.seed)
    dev = set(train[: _count_dev(len(train), options)])
    recordings = [
        Recording(key=path, path=path, split="dev" if path in dev else folder, labels=labels)
        for folder, items in labels_by_path.items()
        for path, labels in items.items()
    ]
    return assemble(NAME, place, recordings, options, cache, progress)


def _count_dev(utterances: int, options: Aishell3Options) -> int:
    return max(1, round(options.dev_fraction * utterances))


def _read_labels(root: Path, folder: str) -> dict[str, dict[str, str]]:
    """Returns the labels of each recording of a folder, by path."""
    require_folder(NAME, root, f"{folder}/wav", "its recordings")
    file = root / folder / "content.txt"
    if not file.is_file():
        raise UserError(
            f"the corpus `{NAME}` lacks {file}, which has the transcripts: unpack it there."
        )
    labels: dict[str, dict[str, str]] = {}
    for number, line in enumerate(read_lines(file), start=1):
        name, _, content = line.partition("\t")
        match, tokens = _NAME.fullmatch(name.strip()), content.split()
        pinyin = [token for token in tokens if _PINYIN.fullmatch(token)]
        text = "".join(token for token in tokens if not _PINYIN.fullmatch(token))
        if match is None or not pinyin or not text:
            raise bad_line(
                file,
                number,
                line,
                "a name like SSB00050001.wav, a tab, and characters with their pinyin",
            )
        speaker = match.group(1)
        labels[f"{folder}/wav/{speaker}/{match.group()}"] = {
            "text": text,
            "pinyin": " ".join(pinyin),
            "speaker": speaker,
        }
    return labels


def _compute_expected(options: Aishell3Options) -> ExpectedCounts:
    dev = _count_dev(TRAIN_UTTERANCES, options)
    return ExpectedCounts(
        source="its own lists (OpenSLR 93), Speech-FT (hours), and `dev_fraction`",
        utterances={"train": TRAIN_UTTERANCES - dev, "dev": dev, "test": TEST_UTTERANCES},
        hours={"train": round(TRAIN_HOURS * (1 - options.dev_fraction), 2)},
    )


CORPORA.register(
    NAME,
    CorpusKind(
        options=Aishell3Options,
        open=open_aishell3,
        needs_root=True,
        layout="train/ and test/ with content.txt and wav/SSBNNNN/SSBNNNNMMMM.wav",
        expected=_compute_expected,
    ),
)
