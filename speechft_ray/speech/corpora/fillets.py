"""Corpus ``fillets``: acted dialogue in Czech and Dutch, from Debian's packages of Fish Fillets NG.

``<root>/sound/<level>/<language>/<line>.ogg`` and ``<root>/script/<level>/dialogs_<language>.lua``,
as ``apt install fillets-ng-data fillets-ng-data-cs fillets-ng-data-nl`` leaves them (GPL-2+). Two
voices of each language, those of the small and the big fish, speak nine of ten lines, the same
lines in both languages.

The game has no splits. A level belongs to ``test`` where the sha256 of its name, modulo 100, is
below 20, to ``dev`` where it is below 32, else to ``train``: no line is in two splits, and both
languages of a level are in the same one. The scripts are read as text; no Lua is run.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field

from speechft_ray.core.errors import UserError
from speechft_ray.speech.corpora._disk import is_litter, list_folder, read_text
from speechft_ray.speech.corpora._layout import (
    DiskOptions,
    Recording,
    assemble,
    require_folder,
    require_root,
)
from speechft_ray.speech.corpora._sampling import (
    select_hours,
    select_utterances,
    split_by_hash,
)
from speechft_ray.speech.corpora.base import (
    CORPORA,
    SPLITS,
    Corpus,
    CorpusKind,
    ExpectedCounts,
    Progress,
)

NAME = "fillets"
INSTALL = "apt install fillets-ng-data fillets-ng-data-cs fillets-ng-data-nl"
LANGUAGES = ("cs", "nl")
MAIN_CHARACTERS = ("small", "big")
WITHOUT_SOUND = ("sound/elevator1/nl/zd1-m-cesta.ogg", "sound/gems/nl/zav-v-sto.ogg")
"""Recordings of the packages (1.0.1-1.1) that hold no samples. They are left out."""
COUNTS = {
    ("cs", "main"): (964, 127, 310),
    ("cs", "all"): (1_158, 128, 385),
    ("nl", "main"): (1_014, 198, 305),
    ("nl", "all"): (1_014, 198, 305),
}
"""Recordings in train, dev and test by language and characters, counted in the packages
1.0.1-1.1."""
TEST_PERCENT, DEV_PERCENT = 20, 12
"""Of the levels, on average."""

_LINE = re.compile(
    r'dialogId\("([^"]+)",\s*"([^"]*)",\s*"(?:[^"\\]|\\.)*"\)'
    r'\s*dialogStr\("((?:[^"\\]|\\.)*)"\)'
)
"""Name of a line, font of its subtitle (one for each character), text in English, and in the
language of the file."""
_NO_WORD = re.compile(r"[^\w']+|_")
_LATIN = re.compile(r"[a-z\u00df-\u017f' ]+")


class FilletsOptions(DiskOptions):
    """Languages and voices."""

    language: Literal["cs", "nl", "all"] = "all"
    """Czech, Dutch, or both."""
    characters: Literal["main", "all"] = "main"
    """The two fish, or also the lines of about 20 minor characters, whose voices are few and often
    changed by effects."""
    train_hours: float | None = Field(default=None, gt=0)
    """Hours of the training lines that are drawn at random; ``None``: all, 1.87 for both
    languages and the two fish."""
    dev_hours: float | None = Field(default=None, gt=0)
    """The same for dev, which has 0.30 hours."""
    test_hours: float | None = Field(default=None, gt=0)
    """The same for test, which has 0.63 hours."""
    seed: int = Field(default=0, ge=0)
    """Of the random selection."""


class Line(NamedTuple):
    """What a script says of a recording."""

    character: str
    text: str


def open_fillets(
    options: FilletsOptions, root: Path | None, cache: Path, progress: Progress | None = None
) -> Corpus:
    """Returns the dialogue with the columns ``text`` (lower-case letters, apostrophe, blanks),
    ``character``, ``language`` and ``speaker`` (language and character).

    Recordings without a line in the script of their level, and lines with digits or in Cyrillic,
    are left out and counted in a note. Raises ``UserError`` for a missing folder or language.
    """
    place = require_root(NAME, root, ["sound", "script"])
    sound = require_folder(NAME, place, "sound", f"the recordings (`{INSTALL}`)")
    scripts = require_folder(NAME, place, "script", f"the texts (`{INSTALL}`)")
    left_out: Counter[str] = Counter()
    recordings = []
    for language in LANGUAGES if options.language == "all" else (options.language,):
        own = list(_list_recordings(sound, scripts, language, options, left_out))
        if not own:
            raise UserError(
                f"{sound} holds no recording of a line in `{language}`: `{INSTALL}`, or choose "
                "another `language`."
            )
        recordings += own
    notes = [f"{count} {what} are left out." for what, count in sorted(left_out.items())]
    corpus = assemble(NAME, place, recordings, options, cache, progress, notes=notes)
    return _draw_hours(corpus, options) if any(_list_hours(options).values()) else corpus


def _list_hours(options: FilletsOptions) -> dict[str, float | None]:
    return {
        "train": options.train_hours,
        "dev": options.dev_hours,
        "test": options.test_hours,
    }


def _draw_hours(corpus: Corpus, options: FilletsOptions) -> Corpus:
    splits: dict[str, str] = {}
    notes = []
    for split, hours in _list_hours(options).items():
        samples = {item.key: item.samples for item in corpus.split(split)}
        drawn = select_hours(samples, hours, options.seed)
        splits |= dict.fromkeys(drawn, split)
        if len(drawn) < len(samples):
            notes.append(f"{len(drawn)} of {len(samples)} lines of {split} are drawn.")
    return select_utterances(corpus, splits, notes)


def split_of(level: str) -> str:
    """Returns the split of a level."""
    return split_by_hash(level, TEST_PERCENT, DEV_PERCENT)


def _list_recordings(
    sound: Path, scripts: Path, language: str, options: FilletsOptions, left_out: Counter[str]
) -> Iterator[Recording]:
    for level in sorted(path.name for path in sound.iterdir() if not is_litter(path.name)):
        if not (sound / level / language).is_dir():
            continue
        lines = _read_script(scripts / level / f"dialogs_{language}.lua")
        for path in list_folder(sound / level / language, ".ogg"):
            line, key = lines.get(path.stem), f"sound/{level}/{language}/{path.name}"
            if key in WITHOUT_SOUND:
                left_out["recordings without sound"] += 1
            elif line is None or not line.text:
                left_out["recordings without a line in the script of their level"] += 1
            elif not _LATIN.fullmatch(line.text):
                left_out["lines with digits or in another script"] += 1
            elif line.character in MAIN_CHARACTERS or options.characters == "all":
                labels = {
                    "text": line.text,
                    "character": line.character,
                    "language": language,
                    "speaker": f"{language}-{line.character}",
                }
                yield Recording(key=key, path=key, split=split_of(level), labels=labels)


def _read_script(path: Path) -> dict[str, Line]:
    """Returns the lines of a script by name; none where there is no script."""
    if not path.is_file():
        return {}
    return {
        name: Line(font.removeprefix("font_") or "unknown", clean_text(text))
        for name, font, text in _LINE.findall(read_text(path))
    }


def clean_text(text: str) -> str:
    """Returns the words of a line in lower case, without punctuation."""
    plain = unicodedata.normalize("NFC", text).replace("\\", "").replace("\u2019", "'").lower()
    words = (word.strip("'") for word in _NO_WORD.sub(" ", plain).split())
    return " ".join(word for word in words if word)


def _compute_expected(options: FilletsOptions) -> ExpectedCounts:
    languages = LANGUAGES if options.language == "all" else (options.language,)
    splits = [split for split, hours in _list_hours(options).items() if hours is None]
    counts = [COUNTS[language, options.characters] for language in languages]
    return ExpectedCounts(
        source="Debian's packages of version 1.0.1-1.1",
        utterances={
            split: count
            for split, count in zip(SPLITS, map(sum, zip(*counts, strict=True)), strict=True)
            if split in splits
        },
    )


CORPORA.register(
    NAME,
    CorpusKind(
        options=FilletsOptions,
        open=open_fillets,
        needs_root=True,
        layout="sound/LEVEL/{cs,nl}/*.ogg, script/LEVEL/dialogs_{cs,nl}.lua (Debian's fillets-ng)",
        expected=_compute_expected,
        package_folder=Path("/usr/share/games/fillets-ng"),
        install=INSTALL,
    ),
)
