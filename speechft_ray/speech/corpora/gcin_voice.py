"""Corpus ``gcin_voice``: Mandarin syllables with their tone, twice each, from Debian's package.

``<root>/ogg/<syllable><tone>/{3,5}.ogg``, as ``apt install gcin-voice`` leaves them: one syllable a
recording, spelled in Zhuyin, with the number of its tone (none: the first). ``3.ogg`` and ``5.ogg``
are two speakers (LGPL-3 and CC BY 3.0).

The package has no splits. A syllable, with all its tones and both speakers, belongs to ``test``
where the sha256 of its spelling, modulo 100, is below 25, to ``dev`` where it is below 40, else to
``train``: a probe for tones has to tell them on syllables that it never heard.
"""

from __future__ import annotations

import re
from pathlib import Path

from speechft_ray.core.errors import UserError
from speechft_ray.speech.corpora._disk import is_litter, list_folder
from speechft_ray.speech.corpora._layout import (
    DiskOptions,
    Recording,
    assemble,
    require_folder,
    require_root,
)
from speechft_ray.speech.corpora._sampling import split_by_hash
from speechft_ray.speech.corpora.base import (
    CORPORA,
    Corpus,
    CorpusKind,
    ExpectedCounts,
    Progress,
)

NAME = "gcin_voice"
INSTALL = "apt install gcin-voice"
SPEAKERS = ("3", "5")
TEST_PERCENT, DEV_PERCENT = 25, 15

_NAME = re.compile(r"([\u3105-\u3119]?)([\u311a-\u3129]{0,2})([1-4]?)")
"""Initial, medial and final, and tone of a folder name in Zhuyin (Unicode's block Bopomofo)."""
_TONES = {"": "1", "2": "2", "3": "3", "4": "4", "1": "5"}
"""Tone by its number in a folder name, which is the key of gcin: 1 is the neutral tone."""


def open_gcin_voice(
    options: DiskOptions, root: Path | None, cache: Path, progress: Progress | None = None
) -> Corpus:
    """Returns the syllables with the columns ``tone`` (1 to 5; 5 is the neutral one), ``initial``
    (its consonant, or ``none``), ``syllable`` (without tone) and ``speaker``.

    Raises ``UserError`` for a missing folder and for a folder whose name is no syllable.
    """
    place = require_root(NAME, root, ["ogg"])
    folder = require_folder(NAME, place, "ogg", f"the recordings (`{INSTALL}`)")
    recordings = []
    for child in sorted(folder.iterdir()):
        if is_litter(child.name) or not child.is_dir():
            continue
        match = _NAME.fullmatch(child.name)
        if match is None or not match[1] + match[2]:
            raise UserError(
                f"{child} is not named like a syllable in Zhuyin with the number of its tone: move "
                f"it away, or `{INSTALL}` again."
            )
        initial, rest, tone = match.groups()
        for path in list_folder(child, ".ogg"):
            if path.stem in SPEAKERS:
                key = f"ogg/{child.name}/{path.name}"
                labels = {
                    "tone": _TONES[tone],
                    "initial": initial or "none",
                    "syllable": initial + rest,
                    "speaker": path.stem,
                }
                split = split_of(initial + rest)
                recordings.append(Recording(key=key, path=key, split=split, labels=labels))
    if not recordings:
        raise UserError(f"{folder} holds no recording: `{INSTALL}`.")
    return assemble(NAME, place, recordings, options, cache, progress)


def split_of(syllable: str) -> str:
    """Returns the split of a syllable without its tone."""
    return split_by_hash(syllable, TEST_PERCENT, DEV_PERCENT)


def _compute_expected(options: DiskOptions) -> ExpectedCounts:
    return ExpectedCounts(
        source="Debian's package of version 0~20170223-3",
        utterances={"train": 1_432, "dev": 325, "test": 601},
        speakers={"train": 2, "dev": 2, "test": 2},
        classes={"tone": 5, "initial": 22, "syllable": 415},
    )


CORPORA.register(
    NAME,
    CorpusKind(
        options=DiskOptions,
        open=open_gcin_voice,
        needs_root=True,
        layout="ogg/SYLLABLE/{3,5}.ogg, the syllable in Zhuyin with its tone (Debian's gcin-voice)",
        expected=_compute_expected,
        package_folder=Path("/usr/share/gcin-voice"),
        install=INSTALL,
    ),
)
