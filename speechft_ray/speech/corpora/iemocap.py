"""Corpus ``iemocap``: acted dialogues of ten speakers in five sessions (SUPERB's ER).

``<root>/Session1/dialog/EmoEvaluation/Ses01F_impro01.txt`` holds lines ``[start - end] <tab> turn
<tab> emotion <tab> [v, a, d]``; the turn's recording is
``<root>/Session1/sentences/wav/Ses01F_impro01/<turn>.wav``, as in the full release. Four emotions
are kept, with excitement as happiness; 5,531 turns.

Quirk of s3prl, kept by default: dev is a random fifth of the four training sessions, so it shares
their speakers. With ``protocol: clean`` dev is the next session; with ``tuning`` dev is a whole
session and there is no test. The random fifth depends on the order of a list that s3prl's
preprocessing writes to ``<root>/meta_data/Session<k>/train_meta_data.json``, with dialogues in the
order of the file system. With that file dev is the same as in s3prl. Without it turns are sorted,
and only the sizes are the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from speechft_ray.core.errors import UserError
from speechft_ray.speech.corpora._disk import list_folder, read_text
from speechft_ray.speech.corpora._layout import (
    DiskOptions,
    Recording,
    assemble,
    join_names,
    read_lines,
    require_folder,
    require_root,
)
from speechft_ray.speech.corpora.base import CORPORA, Corpus, CorpusKind, ExpectedCounts, Progress

NAME = "iemocap"
SESSIONS = 5
EMOTIONS = {"neu": "neu", "hap": "hap", "exc": "hap", "ang": "ang", "sad": "sad"}
"""Labels of the release that are kept, and their class, as in s3prl
(``emotion/IEMOCAP_preprocess.py``)."""
TRAIN_FRACTION = 0.8
"""s3prl ``emotion/config.yaml``: ``valid_ratio: 0.2``."""

_TURN = re.compile(r"\[[^]]*\]\t(Ses0\d[FM]_\w+_[FM]\w+)\t(\w+)\t")
_TEST_SIZES = (1085, 1023, 1151, 1031, 1241)
_SPEAKERS = {
    "superb": {"train": 8, "dev": 8, "test": 2},
    "clean": {"train": 6, "dev": 2, "test": 2},
    "tuning": {"train": 8, "dev": 2, "test": 0},
}


class IemocapOptions(DiskOptions):
    """Sessions of the test and dev splits."""

    fold: int = Field(default=1, ge=1, le=SESSIONS)
    """Session of the test split (``tuning``: of dev). SUPERB reports the mean of the five folds."""
    protocol: Literal["superb", "clean", "tuning"] = "superb"
    """``clean``: dev is the session after the test one (1 after 5), whose two speakers are then
    nowhere else. ``tuning``: the session ``fold`` is dev, the other four are train, and there is no
    test (the paper's fine-tuning, with session 1)."""


def open_iemocap(
    options: IemocapOptions, root: Path | None, cache: Path, progress: Progress | None = None
) -> Corpus:
    """Returns IEMOCAP with the columns ``emotion`` (neu, hap, ang, sad), ``speaker`` and
    ``session``.

    Raises ``UserError`` for a missing session and for an evaluation file without turns.
    """
    place = require_root(NAME, root, [f"Session{number}" for number in range(1, SESSIONS + 1)])
    turns = {number: _read_session(place, number) for number in range(1, SESSIONS + 1)}
    test = turns.pop(options.fold) if options.protocol != "tuning" else []
    notes: list[str] = []
    if options.protocol == "superb":
        train, dev, notes = _draw_random_fifth(
            place, options.fold, [turn for session in turns.values() for turn in session]
        )
    else:
        dev = turns.pop(_dev_session(options))
        train = [turn for session in turns.values() for turn in session]
    splits = {"train": train, "dev": dev, "test": test}
    recordings = [
        Recording(key=path, path=path, split=split, labels=_labels(path, emotion))
        for split, chosen in splits.items()
        for path, emotion in chosen
    ]
    return assemble(NAME, place, recordings, options, cache, progress, notes=notes)


def _dev_session(options: IemocapOptions) -> int:
    return options.fold if options.protocol == "tuning" else options.fold % SESSIONS + 1


def _labels(path: str, emotion: str) -> dict[str, str]:
    name = Path(path).stem
    # The F or M after the session is the actor with the motion-capture markers; the letter of the
    # turn is the speaker.
    return {"emotion": emotion, "speaker": name[:5] + name.rsplit("_", 1)[1][0], "session": name[4]}


def _read_session(root: Path, number: int) -> list[tuple[str, str]]:
    """Returns ``(path, emotion)`` of the turns with one of the four emotions, sorted by path."""
    folder = require_folder(
        NAME, root, f"Session{number}/dialog/EmoEvaluation", f"the labels of session {number}"
    )
    labelled_turns = []
    for file in list_folder(folder, ".txt"):
        if not file.name.startswith("Ses"):
            continue
        turns = [match.groups() for line in read_lines(file) if (match := _TURN.match(line))]
        if not turns:
            raise UserError(
                f"{file} has no line like "
                f"`[6.29 - 8.23]<tab>{file.stem}_F000<tab>neu<tab>[2.5, 2.5, 2.5]`."
            )
        wavs = f"Session{number}/sentences/wav/{file.stem}"
        labelled_turns += [
            (f"{wavs}/{turn}.wav", EMOTIONS[label]) for turn, label in turns if label in EMOTIONS
        ]
    if not labelled_turns:
        raise UserError(
            f"{folder} labels no turn as one of {join_names(EMOTIONS)}: unpack session {number} "
            "again."
        )
    return sorted(labelled_turns)


def _draw_random_fifth(
    root: Path, fold: int, turns: Sequence[tuple[str, str]]
) -> tuple[list[tuple[str, str]], list[tuple[str, str]], list[str]]:
    """Returns train, dev and notes; a torch ``random_split`` after ``manual_seed(0)``, as s3prl."""
    import torch  # takes seconds to load: not when corpora are only listed

    emotions = dict(turns)
    file = root / f"meta_data/Session{fold}/train_meta_data.json"
    order = sorted(emotions)
    notes = ["dev has s3prl's size but not its turns: there is no meta_data/ of its preprocessing."]
    if file.is_file():
        order, notes = _read_order(file), []
        if set(order) != set(emotions):
            raise UserError(
                f"{file} lists {len(order)} turns, but the labels of the other sessions give "
                f"{len(emotions)}; different are {join_names(sorted(set(order) ^ set(emotions)))}. "
                "Delete the list, or make it again."
            )
    places = torch.randperm(len(order), generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = [(order[place], emotions[order[place]]) for place in places]
    count = int(TRAIN_FRACTION * len(order))
    return shuffled[:count], shuffled[count:], notes


def _read_order(file: Path) -> list[str]:
    try:
        return [str(item["path"]) for item in json.loads(read_text(file))["meta_data"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} is not a list of s3prl's preprocessing: {error!r}. Delete it, or make it "
            "again."
        ) from error


def _compute_expected(options: IemocapOptions) -> ExpectedCounts:
    test = _TEST_SIZES[options.fold - 1] if options.protocol != "tuning" else 0
    others = sum(_TEST_SIZES) - test
    dev = (
        others - int(TRAIN_FRACTION * others)
        if options.protocol == "superb"
        else _TEST_SIZES[_dev_session(options) - 1]
    )
    return ExpectedCounts(
        source="s3prl's emotion/meta_data (5,531 turns)",
        utterances={"train": others - dev, "dev": dev, "test": test},
        speakers=_SPEAKERS[options.protocol],
        classes={"emotion": 4},
    )


CORPORA.register(
    NAME,
    CorpusKind(
        options=IemocapOptions,
        open=open_iemocap,
        needs_root=True,
        layout="Session1/ to Session5/ with dialog/EmoEvaluation/*.txt and "
        "sentences/wav/DIALOG/TURN.wav",
        expected=_compute_expected,
    ),
)
