"""Corpus ``crema_d``: twelve sentences acted in six emotions by 91 actors (ER of the paper).

``<root>/AudioWAV/1001_DFA_ANG_XX.wav``: actor, sentence, acted emotion, intensity. CREMA-D has no
splits. EMO-SUPERB (arXiv 2402.13018) cuts the actors, in the order of their numbers, into five
sets; fold k tests on set k, validates on the next one (the first after the fifth) and trains on the
rest.

EMO-SUPERB trains on the emotions that listeners perceived, not on those that were acted. The votes
of the listeners do not come with the recordings: with ``VOTES`` in the root the corpus has the
column ``perceived`` as well.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from speechft_ray.core.errors import UserError
from speechft_ray.speech.corpora._disk import list_folder
from speechft_ray.speech.corpora._layout import (
    DiskOptions,
    Recording,
    assemble,
    bad_line,
    join_names,
    read_lines,
    require_folder,
    require_root,
)
from speechft_ray.speech.corpora.base import (
    CORPORA,
    Corpus,
    CorpusKind,
    ExpectedCounts,
    Progress,
    Resource,
)

NAME = "crema_d"
FOLDER = "AudioWAV"
EMOTIONS = {
    "ANG": "angry",
    "DIS": "disgust",
    "FEA": "fear",
    "HAP": "happy",
    "NEU": "neutral",
    "SAD": "sad",
}
"""Codes in file names and their columns in ``VOTES``."""
ACTOR_SETS = ((1001, 1018), (1019, 1036), (1037, 1054), (1055, 1072), (1073, 1091))
"""First and last actors of EMO-SUPERB's sets (``Split_Set`` of its
``CREMA-D/Primary/labels_consensus_1`` to ``_5.csv``)."""
SET_SIZES = (1_463, 1_470, 1_476, 1_476, 1_557)
"""Rows of these sets in the same files: 7,442 in all."""
WITHOUT_SOUND = "1076_MTI_SAD_XX"
"""The one clip of the release without speech. It is left out."""
_MISNAMED = re.compile(r"_X$")
"""``1040_ITH_SAD_X.wav`` of the release, until its repository renamed it to ``_XX`` (its issue 6);
copies from before have the first name, tables of labels either."""
VOTES = Resource(
    path="labels_consensus_1.csv",
    url="https://raw.githubusercontent.com/EMOsuperb/EMO-SUPERB-submission/"
    "ede4e37e61d7658b3a38728ce12fb630945f7fb6/data/CREMA-D/Primary/labels_consensus_1.csv",
    what="the votes of listeners, for the column perceived",
)

_CLIP = re.compile(r"(1\d{3})_([A-Z]{3})_([A-Z]{3})_[A-Z]{1,2}")


class CremaDOptions(DiskOptions):
    """Assignment of actors to splits."""

    fold: int = Field(default=1, ge=1, le=len(ACTOR_SETS))
    """EMO-SUPERB's fold: the set of the test split. Its config for CREMA-D, with the 15,510
    updates of the paper, has 1."""


def open_crema_d(
    options: CremaDOptions, root: Path | None, cache: Path, progress: Progress | None = None
) -> Corpus:
    """Returns CREMA-D with the columns ``emotion`` (as acted), ``speaker``, ``sentence`` and, with
    ``VOTES``, ``perceived``.

    Raises ``UserError`` for a missing folder, a file name of another format, and votes that do not
    match the clips.
    """
    place = require_root(NAME, root, [FOLDER])
    folder = require_folder(NAME, place, FOLDER, "the recordings")
    paths = [path for path in list_folder(folder, ".wav") if path.stem != WITHOUT_SOUND]
    names = {path.stem for path in paths}
    clips = {
        path.stem: _parse_name(path)
        for path in paths
        if path.stem == _correct_name(path.stem) or _correct_name(path.stem) not in names
    }
    if not clips:
        raise UserError(
            f"{folder} holds no .wav file: unpack it again, with Git LFS if it comes from its "
            "repository."
        )
    perceived, reason = _read_perceived(place, clips)
    recordings = [
        Recording(
            key=f"{FOLDER}/{name}.wav",
            path=f"{FOLDER}/{name}.wav",
            split=split_of(int(actor), options.fold),
            labels={"emotion": emotion.lower(), "speaker": actor, "sentence": sentence.lower()}
            | ({"perceived": perceived[name]} if perceived else {}),
        )
        for name, (actor, sentence, emotion) in clips.items()
    ]
    notes = (
        [f"{WITHOUT_SOUND}.wav holds no speech and is left out."]
        if (folder / f"{WITHOUT_SOUND}.wav").is_file()
        else []
    )
    missing = {"perceived": reason} if reason else {}
    return assemble(
        NAME, place, recordings, options, cache, progress, missing_columns=missing, notes=notes
    )


def split_of(actor: int, fold: int) -> str:
    """Returns the split of an actor, 1001 to 1091, in a fold from 1 to 5."""
    number = next(
        index for index, (first, last) in enumerate(ACTOR_SETS, start=1) if first <= actor <= last
    )
    return "test" if number == fold else "dev" if number == fold % len(ACTOR_SETS) + 1 else "train"


def _parse_name(path: Path) -> tuple[str, str, str]:
    """Returns actor, sentence and emotion."""
    match = _CLIP.fullmatch(path.stem)
    if (
        match is None
        or match.group(3) not in EMOTIONS
        or not ACTOR_SETS[0][0] <= int(match.group(1)) <= ACTOR_SETS[-1][1]
    ):
        raise UserError(
            f"{path} is not named like 1001_DFA_ANG_XX.wav: an actor from 1001 to 1091, a "
            f"sentence, an emotion ({join_names(EMOTIONS, len(EMOTIONS))}) and an intensity. Move "
            "it away, or name it as in the release."
        )
    actor, sentence, emotion = match.groups()
    return actor, sentence, emotion


def _read_perceived(
    root: Path, clips: Mapping[str, tuple[str, str, str]]
) -> tuple[Mapping[str, str], str]:
    """Returns the emotion with most votes by clip, or nothing and the reason.

    In a tie the acted emotion is taken, else the first by name.
    """
    file = root / VOTES.path
    if not file.is_file():
        return {}, f"{root} lacks {VOTES.path}: `speechft corpora prepare {NAME}` fetches it."
    lines = read_lines(file)
    table = csv.DictReader(lines)
    needed = ["FileName", *EMOTIONS.values()]
    if missing := [column for column in needed if column not in (table.fieldnames or ())]:
        raise UserError(
            f"{file} lacks the columns {join_names(missing)}: take it from {VOTES.url}."
        )
    votes: dict[str, dict[str, float]] = {}
    for number, row in enumerate(table, start=2):
        try:
            votes[_correct_name(Path(row["FileName"]).stem)] = {
                code: float(row[column]) for code, column in EMOTIONS.items()
            }
        except (TypeError, ValueError):
            raise bad_line(
                file, number, lines[number - 1], "a file name and a share of votes for each emotion"
            ) from None
    if missing := sorted(name for name in clips if _correct_name(name) not in votes):
        raise UserError(
            f"{file} has no line for {len(missing)} recordings ({join_names(missing)}): "
            f"take it from {VOTES.url}."
        )
    return {
        name: _find_winner(votes[_correct_name(name)], acted).lower()
        for name, (_, _, acted) in clips.items()
    }, ""


def _correct_name(name: str) -> str:
    return _MISNAMED.sub("_XX", name)


def _find_winner(votes: Mapping[str, float], acted: str) -> str:
    return max(votes, key=lambda code: (votes[code], code == acted))


def _compute_expected(options: CremaDOptions) -> ExpectedCounts:
    sizes, speakers = {"train": 0, "dev": 0, "test": 0}, {"train": 0, "dev": 0, "test": 0}
    for (first, last), size in zip(ACTOR_SETS, SET_SIZES, strict=True):
        split = split_of(first, options.fold)
        sizes[split] += size - (first <= int(WITHOUT_SOUND[:4]) <= last)
        speakers[split] += last - first + 1
    return ExpectedCounts(
        source="EMO-SUPERB's labels_consensus files for CREMA-D (7,442 clips, one of them without "
        "speech)",
        utterances=sizes,
        speakers=speakers,
        classes={"emotion": len(EMOTIONS), "sentence": 12},
    )


CORPORA.register(
    NAME,
    CorpusKind(
        options=CremaDOptions,
        open=open_crema_d,
        needs_root=True,
        layout="AudioWAV/1001_DFA_ANG_XX.wav, ...; labels_consensus_1.csv of EMO-SUPERB "
        "for the column perceived",
        expected=_compute_expected,
        resources=[VOTES],
    ),
)
