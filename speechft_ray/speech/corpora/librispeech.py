"""Corpus ``librispeech``: read English (SUPERB's PR and ASR), in the layout of OpenSLR 12.

``<root>/train-clean-100/<speaker>/<chapter>/<speaker>-<chapter>-<number>.flac`` with one
``<speaker>-<chapter>.trans.txt`` per chapter. Phones come from two lexicons in ``<root>/lexicon``,
read in the order of ``LEXICONS``. The first pronunciation of a word is used, with stress and
without silence between words (s3prl ``downstream/ctc/corpus/libriphone.py``).

With ``speaker_hours`` it is a corpus for speaker identification (Speech-FT's SID on LibriSpeech):
all splits are drawn from the training folders and have every speaker.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

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
from speechft_ray.speech.corpora._sampling import draw_speaker_splits, select_utterances
from speechft_ray.speech.corpora.base import (
    CORPORA,
    SPLITS,
    Corpus,
    CorpusKind,
    ExpectedCounts,
    Progress,
    Resource,
)
from speechft_ray.speech.synthesis.g2p import pronounce_words

NAME = "librispeech"
LEXICONS = (
    "lexicon/librispeech-lexicon-200k-g2p.txt",
    "lexicon/librispeech-lexicon-allothers-g2p.txt",
)
SPEAKER_SHARES = {"train": 72, "dev": 8, "test": 20}
"""Shares of the 100 hours in s3prl's speaker task (``speaker_linear_utter_libri``): 80 : 20 by the
lists of contrastive predictive coding, and a tenth of the 80 is dev. Speech-FT draws its 10 hours
from the 72."""
_LEXICON_PAGE = "https://huggingface.co/datasets/s3prl/g2p/resolve/main"

Folder = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class LibriSpeechOptions(DiskOptions):
    """Folders of the splits, pronunciations and the selection by speaker."""

    train: tuple[Folder, ...] = ("train-clean-100",)
    dev: tuple[Folder, ...] = ("dev-clean",)
    test: tuple[Folder, ...] = ("test-clean",)
    """Folders of each split (s3prl ``ctc/libriphone.yaml`` and ``asr/config.yaml``)."""
    g2p: Literal["none", "espeak"] = "none"
    """Source of pronunciations that the lexicons lack. ``espeak``: espeak-ng, with phones mapped to
    ARPAbet. That is approximate, so numbers are not comparable with published ones where many words
    need it."""
    speaker_hours: float | None = Field(default=None, gt=0)
    """Hours of training speech, drawn from the folders of ``train`` with every speaker (Speech-FT:
    10 h with all 251). ``dev`` and ``test`` are then drawn from the same folders, in the
    proportions of ``SPEAKER_SHARES``."""
    seed: int = Field(default=0, ge=0)
    """Of the random selection."""

    @model_validator(mode="after")
    def _check(self) -> LibriSpeechOptions:
        folders = [*self.train, *self.dev, *self.test]
        if len(set(folders)) < len(folders):
            raise ValueError("`train`, `dev` and `test` must name every folder once")
        return self


def open_librispeech(
    options: LibriSpeechOptions, root: Path | None, cache: Path, progress: Progress | None = None
) -> Corpus:
    """Returns LibriSpeech with the columns ``text``, ``speaker`` and, where every word has a
    pronunciation, ``phones``.

    Without pronunciations the corpus opens without ``phones``, and ``missing_columns`` says what
    that column needs. Raises ``UserError`` for a missing folder and for recordings without a
    transcript.
    """
    hours = _compute_split_hours(options)
    folders = {split: getattr(options, split) for split in (["train"] if hours else SPLITS)}
    place = require_root(NAME, root, [folder for names in folders.values() for folder in names])
    transcripts: list[tuple[Path, str, str]] = []
    for split, names in folders.items():
        for name in names:
            folder = require_folder(NAME, place, name, f"its split {split}")
            transcripts += [(path, split, text) for path, text in _read_transcripts(folder)]
    phones, reason, notes = _look_up_phones(place, [text for _, _, text in transcripts], options)
    recordings = [
        Recording(
            key=below(place, path),
            path=below(place, path),
            split=split,
            labels={
                "text": text,
                "speaker": path.stem.split("-")[0],
                **({"phones": phones[text]} if phones else {}),
            },
        )
        for path, split, text in transcripts
    ]
    missing = {"phones": reason} if reason else {}
    corpus = assemble(
        NAME, place, recordings, options, cache, progress, missing_columns=missing, notes=notes
    )
    return _select_by_speaker(corpus, hours, options.seed) if hours else corpus


def _select_by_speaker(corpus: Corpus, hours: Mapping[str, float], seed: int) -> Corpus:
    available, needed = sum(one.seconds for one in corpus.utterances) / 3600, sum(hours.values())
    notes = []
    if available < needed:
        notes.append(
            f"there are {available:.2f} hours to draw from, and `speaker_hours` needs {needed:.2f}."
        )
    return select_utterances(corpus, draw_speaker_splits(corpus.utterances, hours, seed), notes)


def _compute_split_hours(options: LibriSpeechOptions) -> dict[str, float]:
    """Returns the hours to draw by split; nothing without ``speaker_hours``."""
    if options.speaker_hours is None:
        return {}
    return {
        split: options.speaker_hours * share / SPEAKER_SHARES["train"]
        for split, share in SPEAKER_SHARES.items()
    }


def _read_transcripts(folder: Path) -> list[tuple[Path, str]]:
    """Returns the recordings below a folder with their transcripts, also those whose file is
    missing: a folder that was copied in part is no smaller corpus."""
    texts: dict[str, str] = {}
    places: dict[str, Path] = {}
    for file in list_tree(folder, ".trans.txt"):
        for number, line in enumerate(read_lines(file), start=1):
            name, _, text = line.partition(" ")
            if not text.strip():
                raise bad_line(file, number, line, "the name of a recording and its words")
            texts[name] = " ".join(text.split())
            places[name] = file.parent / f"{name}.flac"
    audio = list_tree(folder, ".flac")
    if not audio:
        raise UserError(f"the corpus `{NAME}` has no .flac file below {folder}: unpack it again.")
    if silent := [path.stem for path in audio if path.stem not in texts]:
        raise UserError(
            f"{len(silent)} recordings below {folder} have no line in any .trans.txt: "
            f"{join_names(silent)}."
        )
    recorded = {path.stem for path in audio}
    missing = [path for name, path in places.items() if name not in recorded]
    return [(path, texts[path.stem]) for path in sorted([*audio, *missing])]


def read_lexicon(files: Iterable[Path]) -> dict[str, str]:
    """Returns the first pronunciation of each word, phones separated by blanks.

    Raises ``UserError`` with the line of another format.
    """
    lexicon: dict[str, str] = {}
    for file in files:
        for number, line in enumerate(read_lines(file), start=1):
            word, *phones = line.split()
            if not phones:
                raise bad_line(file, number, line, "a word and its phones")
            lexicon.setdefault(word, " ".join(phones))
    return lexicon


def _look_up_phones(
    root: Path, texts: Sequence[str], options: LibriSpeechOptions
) -> tuple[Mapping[str, str], str, list[str]]:
    """Returns the phones of each text or nothing and the reason; then notes."""
    missing_files = [name for name in LEXICONS if not (root / name).is_file()]
    if missing_files and options.g2p == "none":
        reason = f"{root} lacks {join_names(missing_files)}: put it there"
        return {}, f"{reason}, or set `g2p: espeak` (approximate).", []
    lexicon = read_lexicon(root / name for name in LEXICONS if name not in missing_files)
    words = {word for text in texts for word in text.split()}
    unknown = sorted(words - set(lexicon))
    if unknown and options.g2p == "none":
        reason = f"{len(unknown)} words have no pronunciation in {root / 'lexicon'}"
        way_out = "add them to a lexicon, or set `g2p: espeak` (approximate)"
        return {}, f"{reason} ({join_names(unknown)}): {way_out}.", []
    notes = []
    if unknown:
        lexicon.update(pronounce_words(unknown))
        notes.append(
            f"{len(unknown)} of {len(words)} words are pronounced by espeak-ng "
            f"({join_names(unknown)}): approximate."
        )
    return (
        {text: " ".join(lexicon[word] for word in text.split()) for text in dict.fromkeys(texts)},
        "",
        notes,
    )


def _compute_expected(options: LibriSpeechOptions) -> ExpectedCounts | None:
    default = LibriSpeechOptions()
    hours = _compute_split_hours(options)
    if any(
        getattr(options, split) != getattr(default, split)
        for split in (["train"] if hours else SPLITS)
    ):
        return None
    if hours:
        rounded = {split: round(value, 2) for split, value in hours.items()}
        source = "Panayotov et al. 2015, table 1 (speakers), and `speaker_hours`"
        return ExpectedCounts(
            source=source, utterances={}, hours=rounded, speakers=dict.fromkeys(SPLITS, 251)
        )
    return ExpectedCounts(
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
        layout="train-clean-100/, dev-clean/, test-clean/ with .flac and .trans.txt; "
        "lexicon/ for phones",
        expected=_compute_expected,
        resources=[
            Resource(
                path=name,
                url=f"{_LEXICON_PAGE}/{name}",
                what="pronunciations for the column phones",
            )
            for name in LEXICONS
        ],
    ),
)
