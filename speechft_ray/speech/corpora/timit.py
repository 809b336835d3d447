"""Corpus ``timit``: read sentences with phones labelled by hand, LDC93S1 (PC of the paper).

``<root>/TRAIN/DR1/FCJF0/SX37.WAV`` with ``SX37.PHN`` (lines ``start end phone`` in samples) and
``SX37.TXT`` (``start end words``), in upper or lower case. Recordings are NIST SPHERE or,
converted, RIFF (``SX37.wav``, ``SX37.WAV.wav``).

By convention, the two SA sentences, which all speakers read, are left out, and 61 phones are mapped
to 39. Train is all of TRAIN; dev and test are 50 and 24 speakers of TEST (``_timit_tables``). The
other 94 speakers are in no split.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from speechft_ray.core.errors import UserError
from speechft_ray.speech.corpora._disk import is_litter, list_folder
from speechft_ray.speech.corpora._layout import (
    DiskOptions,
    Recording,
    assemble,
    bad_line,
    below,
    join_names,
    read_lines,
    require_root,
)
from speechft_ray.speech.corpora._timit_tables import (
    CORE_TEST_SPEAKERS,
    DEV_SPEAKERS,
    GLOTTAL_STOP,
    PHONE_MAP,
)
from speechft_ray.speech.corpora.base import (
    CORPORA,
    SPLITS,
    Corpus,
    CorpusKind,
    ExpectedCounts,
    Progress,
)

NAME = "timit"
_AUDIO = ("wav", "wav.wav")
"""Endings of recordings in the order of preference; one public copy has both."""
_PHONE = re.compile(r"(\d+)\s+(\d+)\s+(\S+)\s*")
_SENTENCE = re.compile(r"\d+ \d+ (.+)")

Alignment = tuple[tuple[int, str], ...]


class TimitOptions(DiskOptions):
    """The splits are those of the Kaldi recipe."""


def open_timit(
    options: TimitOptions, root: Path | None, cache: Path, progress: Progress | None = None
) -> Corpus:
    """Returns TIMIT with the columns ``phones``, ``text`` and ``speaker``, aligned by phones.

    ``phones`` has 39 labels with silence. A glottal stop (``q``) is none of them: it is left out of
    ``phones``, and its frames have no label in the alignment. Raises ``UserError`` for a missing
    part, for recordings without phones or words, and for a line of another format.
    """
    place = require_root(NAME, root, ["TRAIN", "train", "TEST", "test"])
    recordings = [
        _make_recording(place, files, split)
        for part in ("train", "test")
        for speaker, sentences in _list_sentences(place, part).items()
        if (split := split_of(part, speaker)) is not None
        for files in sentences.values()
    ]
    if missing := [
        split for split in SPLITS if not any(item.split == split for item in recordings)
    ]:
        raise UserError(
            f"{place} has no speaker of the split {join_names(missing)}: unpack TRAIN and TEST "
            "again."
        )
    return assemble(NAME, place, recordings, options, cache, progress)


def split_of(part: str, speaker: str) -> str | None:
    """Returns the split of a speaker of ``train`` or ``test``; ``None`` for the 94 of neither
    list."""
    if part == "train":
        return "train"
    return "dev" if speaker in DEV_SPEAKERS else "test" if speaker in CORE_TEST_SPEAKERS else None


def _list_sentences(root: Path, part: str) -> dict[str, dict[str, dict[str, Path]]]:
    """Returns the files by speaker, sentence and ending, all in lower case, without SA."""
    folder = next(
        (child for child in list_folder(root) if child.is_dir() and child.name.lower() == part),
        None,
    )
    if folder is None:
        raise UserError(
            f"the corpus `{NAME}` lacks the folder {root / part.upper()} (or {part}): unpack it "
            "there."
        )
    files: dict[str, dict[str, dict[str, Path]]] = {}
    for path in sorted(folder.glob("*/*/*.*")):
        if any(map(is_litter, path.relative_to(folder).parts)):
            continue
        sentence, _, ending = path.name.lower().partition(".")
        if not sentence.startswith("sa"):
            speaker = files.setdefault(path.parent.name.lower(), {})
            speaker.setdefault(sentence, {})[ending] = path
    return files


def _make_recording(root: Path, files: Mapping[str, Path], split: str) -> Recording:
    audio = next((files[ending] for ending in _AUDIO if ending in files), None)
    if audio is None or not {"phn", "txt"} <= set(files):
        names = join_names(path.name for path in files.values())
        raise UserError(
            f"a sentence in {next(iter(files.values())).parent} lacks its .WAV, .PHN or .TXT: "
            f"there is only {names}."
        )
    alignment = read_phones(files["phn"])
    labels = {
        "phones": " ".join(label for _, label in alignment if label),
        "text": _read_words(files["txt"]),
        "speaker": audio.parent.name.lower(),
    }
    key = (
        f"{below(root, audio.parent)}/{audio.name.split('.')[0]}.wav".lower()
    )  # the same in every copy
    return Recording(
        key=key, path=below(root, audio), split=split, labels=labels, alignment=alignment
    )


def read_phones(file: Path) -> Alignment:
    """Returns ``(start_sample, phone)`` of a .PHN file, mapped to 39 phones.

    The label of a glottal stop is empty. Raises ``UserError`` with a line that is not ``start end
    phone``, has an unknown phone, or does not start after the one before.
    """
    phones: list[tuple[int, str]] = []
    for number, line in enumerate(read_lines(file), start=1):
        start, end, phone = match.groups() if (match := _PHONE.fullmatch(line)) else ("0", "0", "")
        if int(start) >= int(end) or phone not in (*PHONE_MAP, GLOTTAL_STOP):
            raise bad_line(
                file, number, line, "`start end phone` in samples, with one of TIMIT's 61 phones"
            )
        if phones and int(start) <= phones[-1][0]:
            raise bad_line(file, number, line, f"a phone that starts after sample {phones[-1][0]}")
        phones.append((int(start), PHONE_MAP.get(phone, "")))
    if not any(label for _, label in phones):
        raise UserError(f"{file} holds no phone: unpack it again.")
    return tuple(phones)


def _read_words(file: Path) -> str:
    line = " ".join(" ".join(read_lines(file)).split())
    if (match := _SENTENCE.fullmatch(line)) is None:
        raise bad_line(file, 1, line, "`start end` in samples and the words of the sentence")
    return match.group(1)


def _compute_expected(options: TimitOptions) -> ExpectedCounts:
    return ExpectedCounts(
        source="Lee & Hon 1989 and the Kaldi recipe for TIMIT (utterances, speakers); "
        "s3prl timit_phone_linear (hours)",
        utterances={"train": 3_696, "dev": 400, "test": 192},
        hours={"train": 3.14, "test": 0.16},
        speakers={"train": 462, "dev": 50, "test": 24},
    )


CORPORA.register(
    NAME,
    CorpusKind(
        options=TimitOptions,
        open=open_timit,
        needs_root=True,
        layout="TRAIN/ and TEST/ with DR1/SPEAKER/SX37.WAV (SPHERE or RIFF), .PHN and .TXT; "
        "upper or lower case",
        expected=_compute_expected,
    ),
)
