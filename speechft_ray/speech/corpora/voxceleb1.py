"""Corpus ``voxceleb1``: interviews of celebrities (SUPERB's SID and ASV), as two unpacked archives.

``<root>/dev/wav/id10001/<video>/00001.wav`` and ``<root>/test/wav/...``. The lists do not come with
the recordings: one of ``SPLIT_LISTS`` (identification) or ``TRIAL_LISTS`` (verification) is
expected in the root.

Quirks of s3prl, kept by default. Verification has no validation set: the checkpoint with the best
test score is reported, so the dev split is empty. ``protocol: clean`` holds out speakers of the dev
folder, with trials of their own. For verification the audio is attenuated by 3 dB, pauses are
removed, and training utterances of 2 s or less after that are left out.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import model_validator

from speechft_ray.core.errors import UserError
from speechft_ray.speech.corpora._disk import is_litter
from speechft_ray.speech.corpora._layout import (
    DiskOptions,
    Recording,
    assemble,
    bad_line,
    read_lines,
    require_folder,
    require_root,
)
from speechft_ray.speech.corpora._vad import REMOVE_SILENCE
from speechft_ray.speech.corpora.base import (
    CORPORA,
    Corpus,
    CorpusKind,
    ExpectedCounts,
    Progress,
    Resource,
)

NAME = "voxceleb1"
SPLIT_LISTS = ("iden_split.txt", "veri_test_class.txt")
"""The official list and its name in s3prl; lines are ``1 id10003/video/00001.wav`` (1 train, 2 dev,
3 test)."""
TRIAL_LISTS = ("voxceleb1_test_v2.txt", "veri_test.txt")
"""s3prl's list (OpenSLR 49) and the official one; lines are ``1 a.wav b.wav``, 1 for one speaker, 0
for two."""
RESOURCES = (
    Resource(
        path=SPLIT_LISTS[0],
        url="https://www.robots.ox.ac.uk/~vgg/data/voxceleb/meta/iden_split.txt",
        what="splits of identification",
    ),
    Resource(
        path=TRIAL_LISTS[0],
        url="https://www.openslr.org/resources/49/voxceleb1_test_v2.txt",
        what="trials of verification",
    ),
)
_SPLITS = {"1": "train", "2": "dev", "3": "test"}
_FILE = re.compile(r"(id\d{5})/[^/\s]+/[^/\s]+\.wav")

MIN_TRAIN_SAMPLES = 32_001
"""Training utterances must be longer than 2 s (s3prl ``sv_voxceleb1/dataset.py``:
``vad_config.min_sec``)."""
HELD_OUT_SPEAKERS, TRIALS_PER_SPEAKER = 40, 100
"""Of ``protocol: clean``: as many speakers as the test has. Half of the trials of each speaker are
target trials."""


class VoxCeleb1Options(DiskOptions):
    """Task, and the validation of verification."""

    task: Literal["identification", "verification"] = "identification"
    protocol: Literal["superb", "clean"] = "superb"
    """``clean``: 40 speakers of the dev folder are the dev split of verification."""

    @model_validator(mode="after")
    def _check(self) -> VoxCeleb1Options:
        if self.protocol == "clean" and self.task != "verification":
            raise ValueError(
                "`protocol` must be `superb` for identification, whose splits have nothing to clean"
            )
        return self


def open_voxceleb1(
    options: VoxCeleb1Options, root: Path | None, cache: Path, progress: Progress | None = None
) -> Corpus:
    """Returns VoxCeleb1 with the column ``speaker``; for verification with ``trials``.

    A listed recording without a file counts as bad audio. Raises ``UserError`` for a missing
    folder or list.
    """
    place = require_root(NAME, root, ["dev/wav", "test/wav", *SPLIT_LISTS])
    for part in ("dev", "test"):
        require_folder(NAME, place, f"{part}/wav", f"the recordings of its {part} archive")
    if options.task == "identification":
        return assemble(NAME, place, _list_identification(place), options, cache, progress)
    recordings, trials = _list_verification(place, options.protocol)
    return assemble(
        NAME,
        place,
        recordings,
        options,
        cache,
        progress,
        transform=REMOVE_SILENCE,
        trials=trials,
        min_train_samples=MIN_TRAIN_SAMPLES,
    )


def _list_identification(root: Path) -> list[Recording]:
    file = _find_list(root, SPLIT_LISTS)
    paths = _find_recordings(root)
    recordings = []
    for number, line in enumerate(read_lines(file), start=1):
        split, _, name = line.strip().partition(" ")
        if split not in _SPLITS or not _FILE.fullmatch(name):
            raise bad_line(
                file, number, line, "`1`, `2` or `3` and a path like id10003/na8-QEFmj44/00003.wav"
            )
        path = paths.get(name, f"dev/wav/{name}")
        recordings.append(_make_recording(path, name, _SPLITS[split]))
    return recordings


def _list_verification(
    root: Path, protocol: str
) -> tuple[list[Recording], list[tuple[bool, str, str]]]:
    file = _find_list(root, TRIAL_LISTS)
    paths = _find_recordings(root)
    trials: list[tuple[bool, str, str]] = []
    # The trials of the list and their recordings, which are the test split.
    test_names: dict[str, None] = {}
    for number, line in enumerate(read_lines(file), start=1):
        same, *pair = line.split()
        if same not in ("0", "1") or len(pair) != 2 or not all(map(_FILE.fullmatch, pair)):
            raise bad_line(
                file, number, line, "`1` or `0` and two paths like id10270/5r0dWxy17C8/00001.wav"
            )
        trials.append((same == "1", pair[0], pair[1]))
        test_names.update(dict.fromkeys(pair))
    paths.update({name: f"test/wav/{name}" for name in test_names if name not in paths})
    # All other recordings of the dev folder are train; with `clean` some speakers are dev and have
    # trials of their own.
    others = [
        name for name, path in paths.items() if path.startswith("dev/") and name not in test_names
    ]
    dev_speakers = _draw_dev_speakers(others) if protocol == "clean" else set()
    splits = {name: "dev" if name[:7] in dev_speakers else "train" for name in others}
    splits.update(dict.fromkeys(test_names, "test"))
    trials += _draw_trials([name for name, split in splits.items() if split == "dev"])
    pairs = [(same, paths[one], paths[other]) for same, one, other in trials]
    return [_make_recording(paths[name], name, split) for name, split in splits.items()], pairs


def _make_recording(path: str, name: str, split: str) -> Recording:
    return Recording(key=path, path=path, split=split, labels={"speaker": name[:7]})


def _find_recordings(root: Path) -> dict[str, str]:
    """Returns the path of each recording by its name in the lists."""
    paths: dict[str, str] = {}
    for part in ("dev", "test"):
        folder = root / part / "wav"
        for path in sorted(folder.glob("*/*/*.wav")):
            inner = path.parts[-3:]
            if not any(map(is_litter, inner)):
                name = "/".join(inner)
                paths[name] = f"{part}/wav/{name}"
    return paths


def _find_list(root: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (root / name).is_file():
            return root / name
    url = next(resource.url for resource in RESOURCES if resource.path == names[0])
    raise UserError(
        f"the corpus `{NAME}` needs {' or '.join(names)} in {root}, which does not come with its "
        f"recordings: take it from {url}."
    )


def _draw_dev_speakers(names: Sequence[str]) -> set[str]:
    speakers = sorted({name[:7] for name in names})
    return set(random.Random(0).sample(speakers, min(HELD_OUT_SPEAKERS, len(speakers) // 2)))


def _draw_trials(names: Sequence[str]) -> list[tuple[bool, str, str]]:
    """Returns seeded trials of the held-out speakers, as many of one speaker as of two.

    The recordings of a target trial are of two videos.
    """
    by_speaker: dict[str, list[str]] = {}
    for name in sorted(names):
        by_speaker.setdefault(name[:7], []).append(name)
    draw = random.Random(0)
    turns = [speaker for speaker in by_speaker for _ in range(TRIALS_PER_SPEAKER // 2)]
    return [trial for speaker in turns for trial in _draw_pair(speaker, by_speaker, draw)]


def _draw_pair(
    speaker: str, by_speaker: Mapping[str, Sequence[str]], draw: random.Random
) -> list[tuple[bool, str, str]]:
    first = draw.choice(by_speaker[speaker])
    alike = [name for name in by_speaker[speaker] if name.split("/")[1] != first.split("/")[1]]
    others = [name for name in by_speaker if name != speaker]
    trials = [(True, first, draw.choice(alike))] if alike else []
    if others:
        trials.append((False, first, draw.choice(by_speaker[draw.choice(others)])))
    return trials


def _compute_expected(options: VoxCeleb1Options) -> ExpectedCounts:
    if options.task == "identification":
        return ExpectedCounts(
            source="the official iden_split.txt (Nagrani et al. 2017, table 4)",
            utterances={"train": 138_361, "dev": 6_904, "test": 8_251},
            speakers={"train": 1_251, "dev": 1_251, "test": 1_251},
        )
    return ExpectedCounts(
        source="voxceleb1_test_v2.txt (4,715 files, 37,720 trials); Nagrani et al. 2017, table 5 "
        "(speakers)",
        utterances={"test": 4_715},
        speakers={"test": 40}
        | ({"train": 1_211} if options.protocol == "superb" else {"train": 1_171, "dev": 40}),
        trials=37_720,
    )


CORPORA.register(
    NAME,
    CorpusKind(
        options=VoxCeleb1Options,
        open=open_voxceleb1,
        needs_root=True,
        layout="dev/wav/ and test/wav/ with idNNNNN/VIDEO/N.wav; iden_split.txt, "
        "voxceleb1_test_v2.txt",
        expected=_compute_expected,
        resources=RESOURCES,
    ),
)
