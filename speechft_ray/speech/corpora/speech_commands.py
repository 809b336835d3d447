"""Corpus ``speech_commands``: single words, version 0.01 (SUPERB's KS), as two unpacked archives.

``<root>/speech_commands_v0.01/<word>/<speaker>_nohash_<n>.wav`` with ``_background_noise_/``, and
the official test set ``<root>/speech_commands_test_set_v0.01/<class>/*.wav`` with twelve folders.
All audio is attenuated by 3 dB.

Quirks of s3prl, kept by default. The speaker's hash gives dev 10 % of the training archive and
*discards* the 10 % that are its own test. Words that are no keyword become ``_unknown_``. The
background recordings are ``_silence_`` in both train and dev: in s3prl one random second at each
access, here ``silence_crops`` seconds of each recording, drawn once. With ``protocol: clean`` train
has crops of the first four fifths of each background recording and dev crops of the rest.
"""

from __future__ import annotations

import hashlib
import random
import re
from pathlib import Path
from typing import Literal

from pydantic import Field

from speechft_ray.core.errors import UserError
from speechft_ray.core.units import SAMPLE_RATE_HZ
from speechft_ray.speech.audio import read_audio_info
from speechft_ray.speech.corpora._disk import list_folder
from speechft_ray.speech.corpora._layout import (
    DiskOptions,
    Recording,
    assemble,
    below,
    join_names,
    require_folder,
    require_root,
)
from speechft_ray.speech.corpora._reading import GAIN_MINUS_3_DB
from speechft_ray.speech.corpora.base import (
    CORPORA,
    NO_SPEAKER,
    Corpus,
    CorpusKind,
    ExpectedCounts,
    Progress,
)

NAME = "speech_commands"
ARCHIVE, TEST_ARCHIVE = "speech_commands_v0.01", "speech_commands_test_set_v0.01"
NOISE = "_background_noise_"
SILENCE, UNKNOWN = "_silence_", "_unknown_"
KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")

_SPEAKER = re.compile(r"([0-9a-f]{8})_nohash_")
_BUCKETS = 2**27 - 1
"""``MAX_NUM_WAVS_PER_CLASS`` of the archive's README, which documents the rule of the splits."""
_TRAIN_FRACTION = 0.8
"""Share of each background recording for train with ``protocol: clean``."""


class SpeechCommandsOptions(DiskOptions):
    """Crops of silence."""

    silence_crops: int = Field(default=40, ge=1, le=1000)
    """Seconds of each background recording, in train and in dev. Six recordings times 40 are about
    as many as dev has of a keyword; in training, classes are equally likely however many there
    are."""
    protocol: Literal["superb", "clean"] = "superb"
    """``clean``: no second of background noise is in both train and dev."""


def open_speech_commands(
    options: SpeechCommandsOptions, root: Path | None, cache: Path, progress: Progress | None = None
) -> Corpus:
    """Returns Speech Commands with the columns ``keyword`` (12 classes) and ``speaker`` (a hash;
    ``none`` for silence).

    Raises ``UserError`` for a missing archive, word, class or background recording.
    """
    place = require_root(NAME, root, [ARCHIVE, TEST_ARCHIVE])
    require_folder(NAME, place, ARCHIVE, "the training archive")
    require_folder(NAME, place, TEST_ARCHIVE, "the official test set, an archive of its own")
    recordings = [*_list_words(place), *_list_test(place), *_list_silence(place, options)]
    return assemble(NAME, place, recordings, options, cache, progress, transform=GAIN_MINUS_3_DB)


def split_of(file_name: str) -> str | None:
    """Returns the split of a training file by the hash of its speaker; ``None`` for the share that
    is discarded."""
    speaker = re.sub(r"_nohash_.*$", "", file_name)
    percent = (
        int(hashlib.sha1(speaker.encode()).hexdigest(), 16) % (_BUCKETS + 1) * (100.0 / _BUCKETS)
    )
    return "dev" if percent < 10 else None if percent < 20 else "train"


def _list_words(root: Path) -> list[Recording]:
    recordings = []
    for folder in list_folder(root / ARCHIVE):
        if not folder.is_dir() or folder.name.startswith("_"):
            continue
        keyword = folder.name if folder.name in KEYWORDS else UNKNOWN
        recordings += [
            _make_recording(root, path, split, keyword)
            for path in list_folder(folder, ".wav")
            if (split := split_of(path.name))
        ]
    if missing := [word for word in KEYWORDS if not (root / ARCHIVE / word).is_dir()]:
        raise UserError(
            f"the corpus `{NAME}` lacks the words {join_names(missing)} in {root / ARCHIVE}: "
            "unpack it again."
        )
    return recordings


def _list_test(root: Path) -> list[Recording]:
    folders = [
        require_folder(NAME, root, f"{TEST_ARCHIVE}/{name}", "a class")
        for name in (*KEYWORDS, SILENCE, UNKNOWN)
    ]
    return [
        _make_recording(root, path, "test", folder.name)
        for folder in folders
        for path in list_folder(folder, ".wav")
    ]


def _make_recording(root: Path, path: Path, split: str, keyword: str) -> Recording:
    match = _SPEAKER.search(path.name)
    place = below(root, path)
    labels = {"keyword": keyword, "speaker": match.group(1) if match else NO_SPEAKER}
    return Recording(key=place, path=place, split=split, labels=labels)


def _list_silence(root: Path, options: SpeechCommandsOptions) -> list[Recording]:
    folder = require_folder(NAME, root, f"{ARCHIVE}/{NOISE}", "source of the silence")
    paths = list_folder(folder, ".wav")
    if not paths:
        raise UserError(
            f"{folder} holds no .wav file: silence is cut from them, so unpack the training "
            "archive again."
        )
    return [item for path in paths for item in _cut_crops(root, path, options)]


def _cut_crops(root: Path, path: Path, options: SpeechCommandsOptions) -> list[Recording]:
    """Returns the crops of one background recording.

    Returns one that cannot be read as a whole, so that it is reported with other bad audio.
    """
    place, labels = below(root, path), {"keyword": SILENCE, "speaker": NO_SPEAKER}
    try:
        samples = read_audio_info(path).samples
    except UserError:
        return [Recording(key=place, path=place, split="train", labels=labels)]
    edge = int(_TRAIN_FRACTION * samples) if options.protocol == "clean" else samples
    crops = []
    for split, begin, end in (("train", 0, edge), ("dev", edge % samples, samples)):
        if end - begin < SAMPLE_RATE_HZ:
            raise UserError(
                f"{path} is too short to cut seconds of silence for {split} from it: unpack the "
                "archive again."
            )
        draw = random.Random(f"{path.name} {split}")
        for index in range(options.silence_crops):
            start = draw.randint(begin, end - SAMPLE_RATE_HZ)
            key, cut = f"{place}#{split}-{index:03d}", (start, start + SAMPLE_RATE_HZ)
            crops.append(Recording(key=key, path=place, split=split, labels=labels, cut=cut))
    return crops


def _compute_expected(options: SpeechCommandsOptions) -> ExpectedCounts:
    silence = 6 * options.silence_crops
    return ExpectedCounts(
        source="the card of the data set `superb` (ks): 51,094 and 6,798 words, 3,081 test files; "
        "6 background recordings",
        utterances={"train": 51_094 + silence, "dev": 6_798 + silence, "test": 3_081},
        classes={"keyword": 12},
    )


CORPORA.register(
    NAME,
    CorpusKind(
        options=SpeechCommandsOptions,
        open=open_speech_commands,
        needs_root=True,
        layout=f"{ARCHIVE}/ with a folder per word and {NOISE}/; {TEST_ARCHIVE}/ with 12 folders",
        expected=_compute_expected,
    ),
)
