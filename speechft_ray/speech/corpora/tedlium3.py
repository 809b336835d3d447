"""Corpus ``tedlium3``: TED talks with aligned captions, release 3 (Speech-FT's ASR on TED-LIUM).

In the layout of OpenSLR 51 the files are
``<root>/legacy/{train,dev,test}/{sph,stm}/<talk>.{sph,stm}``; those of train are links to
``<root>/data``. A line of an ``.stm`` is an utterance: ``talk 1 speaker start end <label> words``,
with times in seconds. Only that part of the talk is read.

As in the official preparation, segments with ``ignore_time_segment_in_scoring``, lines without
words and lines with a sign that is no letter are left out; the last are mostly ``<unk>``, words
that the aligner did not know. Words are in lower case. The release separates endings (``it 's``);
they are joined again.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path

from pydantic import Field

from speechft_ray.core.errors import UserError
from speechft_ray.core.units import SAMPLE_RATE_HZ
from speechft_ray.speech.corpora._disk import list_folder
from speechft_ray.speech.corpora._layout import (
    DiskOptions,
    Recording,
    assemble,
    bad_line,
    read_lines,
    require_folder,
    require_root,
)
from speechft_ray.speech.corpora._sampling import select_hours
from speechft_ray.speech.corpora.base import (
    CORPORA,
    SPLITS,
    Corpus,
    CorpusKind,
    ExpectedCounts,
    Progress,
)

NAME = "tedlium3"
SHORTEST_SECONDS, LONGEST_SECONDS = 1.0, 60.0
"""Limits of training utterances (official preparation)."""
IGNORED = "ignore_time_segment_in_scoring"

_TALK = re.compile(r"[A-Za-z0-9][\w.-]*")
_APART = re.compile(r" (n't|'(?:s|m|d|t|re|ve|ll)?)(?= |$)")
_NOT_SPOKEN = re.compile(r"[{\[][^}\]]*[}\]]|<sil>|\(\d\)")
"""Noises in braces, silences and numbers of pronunciations, which older releases have."""
_SPELLED = re.compile(r"[a-z' ]*[a-z][a-z' ]*")


class Tedlium3Options(DiskOptions):
    """Hours and seed of the training selection."""

    train_hours: float | None = Field(default=100, gt=0)
    """Hours drawn at random from the training utterances (Speech-FT: 100); ``None``: all, about
    450."""
    seed: int = Field(default=0, ge=0)
    """Of the random selection."""


def open_tedlium3(
    options: Tedlium3Options, root: Path | None, cache: Path, progress: Progress | None = None
) -> Corpus:
    """Returns TED-LIUM 3 with the columns ``text`` (a to z, apostrophe, blanks) and ``speaker``.

    The speaker is the name of the talk. dev and test are the official ones. Raises ``UserError``
    for a missing folder, a split without utterances, and a line of another format.
    """
    place = require_root(NAME, root, ["legacy"])
    left_out: Counter[str] = Counter()
    utterances = {split: _read_split(place, split, left_out) for split in SPLITS}
    samples = {item.key: item.cut[1] - item.cut[0] for item in utterances["train"] if item.cut}
    fitting = {key: count for key, count in samples.items() if _is_within_limits(count)}
    left_out["training utterances shorter than 1 s or longer than 60 s"] = len(samples) - len(
        fitting
    )
    chosen = select_hours(fitting, options.train_hours, options.seed)
    recordings = [
        item
        for split, items in utterances.items()
        for item in items
        if split != "train" or item.key in chosen
    ]
    notes = [f"{count} {what} are left out." for what, count in left_out.items() if count]
    hours = sum(fitting.values()) / SAMPLE_RATE_HZ / 3600
    if options.train_hours is not None and hours < options.train_hours:
        notes.append(
            f"train has {hours:.2f} hours, fewer than the {options.train_hours:g} that "
            "`train_hours` asks for."
        )
    return assemble(NAME, place, recordings, options, cache, progress, notes=notes)


def normalise_words(words: str) -> str | None:
    """Returns the words of a line in lower case with endings joined.

    Returns ``None`` for a line with a sign that is no letter.
    """
    spoken = " ".join(_NOT_SPOKEN.sub(" ", words.lower()).split())
    text = _APART.sub(r"\1", spoken)
    return text if _SPELLED.fullmatch(text) else None


def _is_within_limits(samples: int) -> bool:
    return SHORTEST_SECONDS <= samples / SAMPLE_RATE_HZ <= LONGEST_SECONDS


def _read_split(root: Path, split: str, left_out: Counter[str]) -> list[Recording]:
    """Returns the utterances of a split and counts other lines in ``left_out``."""
    folders = {
        kind: require_folder(NAME, root, f"legacy/{split}/{kind}", f"its split {split}")
        for kind in ("stm", "sph")
    }
    recordings = []
    for file in list_folder(folders["stm"], ".stm"):
        for number, line in enumerate(read_lines(file), start=1):
            if line.startswith(";;"):
                continue
            talk, speaker, cut, words = _parse_line(file, number, line)
            if words.strip() == IGNORED:
                continue
            text = normalise_words(words)
            if text is None:
                left_out[
                    "lines without words, or with a sign that is no letter (above all `<unk>`),"
                ] += 1
                continue
            path = f"legacy/{split}/sph/{talk}.sph"
            key = f"legacy/{split}/{talk}/{cut[0]:08d}-{cut[1]:08d}"
            recordings.append(
                Recording(
                    key=key,
                    path=path,
                    split=split,
                    labels={"text": text, "speaker": speaker},
                    cut=cut,
                )
            )
    if not recordings:
        raise UserError(f"{folders['stm']} has no .stm file with an utterance: unpack it again.")
    return recordings


def _parse_line(file: Path, number: int, line: str) -> tuple[str, str, tuple[int, int], str]:
    """Returns talk, speaker, ``[start, stop)`` in samples, and the words of a line."""
    fields = line.split(maxsplit=6)
    try:
        talk, _, speaker, *times = fields[:5]
        start, stop = (float(time) for time in times)
        if not (
            _TALK.fullmatch(talk)
            and math.isfinite(stop)
            and 0 <= start < stop
            and fields[5].startswith("<")
        ):
            raise ValueError(line)
    except (ValueError, IndexError):
        format_ = (
            "a talk, a channel, a speaker, a start before its end in seconds, a label like "
            "<o,f0,male>, and words"
        )
        raise bad_line(file, number, line, format_) from None
    cut = (round(start * SAMPLE_RATE_HZ), round(stop * SAMPLE_RATE_HZ))
    return talk, speaker, cut, fields[6] if len(fields) > 6 else ""


def _compute_expected(options: Tedlium3Options) -> ExpectedCounts:
    return ExpectedCounts(
        source="Hernandez et al. 2018 (talks of dev and test), and `train_hours`",
        utterances={},
        hours={} if options.train_hours is None else {"train": options.train_hours},
        speakers={"dev": 8, "test": 11},
    )


CORPORA.register(
    NAME,
    CorpusKind(
        options=Tedlium3Options,
        open=open_tedlium3,
        needs_root=True,
        layout="legacy/train/, legacy/dev/, legacy/test/ with sph/*.sph and stm/*.stm; data/, "
        "where those of train lie",
        expected=_compute_expected,
    ),
)
