"""From the files of a real corpus to a ``Corpus``: what the corpora on disk share.

A corpus' own file says which recordings there are and how they are labelled. Here they are
measured, the bad ones told or left out, and the identity taken: of every recording's place below
the root, split, labels and bytes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from speechft_ray.core.errors import SpecError, UserError
from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.core.units import SAMPLE_RATE_HZ
from speechft_ray.speech.audio import AudioInfo, read_audio, read_audio_info
from speechft_ray.speech.corpora._files import Fact, measure
from speechft_ray.speech.corpora.base import Corpus, Progress, Utterance

MAX_NAMES = 5
"""Names told of a long list; the rest is counted."""


class DiskOptions(BaseModel):
    """Base of the options of corpora on disk: frozen, no unknown field."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    on_bad_audio: Literal["fail", "skip"] = "fail"
    """What a missing, unreadable, cut or empty recording means: the corpus is refused, or goes
    without it and says so."""


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One utterance of a corpus on disk. ``path`` is relative to the root; ``cut`` is the part
    ``[start, stop)`` of it that the utterance is, in samples at 16 kHz (``None``: all), where no
    transform changes the length. ``alignment`` counts from its start (see ``Utterance``)."""

    key: str
    path: str
    split: str
    labels: Mapping[str, str]
    cut: tuple[int, int] | None = None
    alignment: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Transform:
    """What is done to every wave of a corpus. ``name`` is part of the identity; ``keeps_length``
    spares decoding all files."""

    name: str
    apply: Callable[[np.ndarray], np.ndarray]
    keeps_length: bool = True


def _unchanged(wave: np.ndarray) -> np.ndarray:
    return wave


IDENTITY = Transform(name="", apply=_unchanged)
GAIN_MINUS_3_DB = Transform(
    name="gain -3 dB", apply=lambda wave: wave * np.float32(10 ** (-3 / 20))
)
"""s3prl reads KS and QbE through SoX with ``gain -3.0``."""


def assemble(
    name: str,
    root: Path,
    recordings: Sequence[Recording],
    options: DiskOptions,
    cache: Path,
    progress: Progress | None,
    *,
    transform: Transform = IDENTITY,
    trials: Sequence[tuple[bool, str, str]] = (),
    missing_columns: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
    min_train_samples: int = 1,
    speaker_namespace: str = "",
) -> Corpus:
    """Returns the corpus ``name`` of these recordings, in the order of their keys. All have the
    same label columns.

    A cut that reaches beyond its file ends with it, and so does an alignment. Training utterances
    below ``min_train_samples`` are left out, and trials whose recordings were skipped. ``speaker_namespace``:
    see ``Corpus``. Raises ``UserError`` for a key that stands there twice and, unless ``options``
    say skip, ``SpecError`` with the recordings that cannot be used.
    """
    paths = sorted({recording.path for recording in recordings})
    label = "-".join(re.findall(r"[a-z0-9_]+", f"{name} {transform.name}"))
    examined = read_audio_info if transform.keeps_length else _after(transform)
    facts, faults = measure(root, paths, cache, progress, name=label, examined=examined)
    for item in recordings:
        whole = facts[item.path].samples if item.path in facts else None
        # Only a transform empties a wave; in training that is one of the short ones below.
        if whole == 0 and item.split != "train":
            del facts[item.path]
            faults[item.path] = f"{root / item.path} holds nothing but pauses"
        elif whole and item.cut is not None and item.cut[0] >= whole:
            del facts[item.path]
            faults[item.path] = f"{root / item.path} ends before `{item.key}`, a part of it, begins"
    if faults and options.on_bad_audio == "fail":
        raise SpecError(f"the corpus `{name}` in {root}", _told(faults))
    sound = sorted((item for item in recordings if item.path in facts), key=lambda item: item.key)
    good = [
        item
        for item in sound
        if item.split != "train" or _samples(item, facts) >= min_train_samples
    ]
    if len(good) < len(sound):
        least = min_train_samples / SAMPLE_RATE_HZ
        notes = (
            *notes,
            f"{len(sound) - len(good)} training utterances of less than {least:.2f} s are left out.",
        )
    _check_keys(name, root, good)
    keys = {item.key for item in good}
    kept = tuple(trial for trial in trials if trial[1] in keys and trial[2] in keys)
    content = [_identity(item, facts) for item in good]
    cuts = {item.key: item for item in good}

    def read(utterance: Utterance) -> np.ndarray:
        item = cuts[utterance.key]
        wave = transform.apply(read_audio(item.path, root, item.cut))
        if len(wave) != _samples(item, facts):
            raise UserError(
                f"{root / item.path} has changed since the corpus was opened. Start again."
            )
        return wave

    return Corpus(
        name=name,
        fingerprint=fingerprint({"treatment": transform.name, "content": content, "trials": kept}),
        utterances=[_utterance(item, _samples(item, facts)) for item in good],
        read=read,
        columns=frozenset(good[0].labels) if good else frozenset(),
        trials=kept,
        missing_columns=missing_columns or {},
        notes=(*notes, *describe_conversions(facts.values()), *left_out(faults)),
        skipped=dict(Counter(item.split for item in recordings if item.path in faults)),
        audio_ids={item.key: _content(facts[item.path].sha256, item.cut) for item in good},
        speaker_namespace=speaker_namespace,
    )


def describe_conversions(facts: Iterable[Fact]) -> list[str]:
    """Returns a sentence for the recordings that are resampled, and one for those that are mixed
    down."""
    known = list(facts)
    found = []
    if rates := sorted({fact.rate_hz for fact in known} - {SAMPLE_RATE_HZ}):
        count = sum(fact.rate_hz != SAMPLE_RATE_HZ for fact in known)
        found.append(
            f"{count} of {len(known)} files are not at 16 kHz ({join_names(map(str, rates))} Hz) and are resampled."
        )
    if count := sum(fact.channels > 1 for fact in known):
        found.append(
            f"{count} of {len(known)} files have more than one channel and are mixed down to mono."
        )
    return found


def left_out(faults: Mapping[str, str]) -> list[str]:
    """Returns the sentence for files that were skipped."""
    if not faults:
        return []
    return [
        f"{len(faults)} bad files are left out: {'; '.join(text for _, text in _told(faults))}."
    ]


def join_names(names: Iterable[str], count: int = MAX_NAMES) -> str:
    """Returns the first names and how many more there are."""
    every = list(names)
    return ", ".join(every[:count]) + (
        f" and {len(every) - count} more" if len(every) > count else ""
    )


def require_root(name: str, root: Path | None, marks: Sequence[str]) -> Path:
    """Returns the root when it holds one of ``marks``, names below it that a corpus of this layout
    cannot lack.

    Raises ``UserError`` that tells which folder to give when it is the one above or one of those
    below.
    """
    if root is None:
        raise UserError(f"the corpus `{name}` needs the folder with its files.")
    if not root.is_dir():
        raise UserError(
            f"the corpus `{name}` is expected in the folder {root}, which does not exist."
        )
    if _holds(root, marks):
        return root
    below = sorted(child for child in root.iterdir() if child.is_dir() and _holds(child, marks))
    right, how = (below[0], "high") if below else (root.absolute().parent, "low")
    if below or _holds(right, marks):
        raise UserError(
            f"{root} is one level too {how} for the corpus `{name}`, whose files are in {right}: give that folder, or for a "
            f"sweep make the folder `{name}` of --corpora a link to it."
        )
    raise UserError(
        f"{root} is not the folder of the corpus `{name}`: it holds none of {join_names(marks)}."
    )


def require_folder(name: str, root: Path, folder: str, why: str) -> Path:
    """Returns a folder below the root. Raises ``UserError`` when it is missing: a split, most
    likely."""
    if not (root / folder).is_dir():
        raise UserError(
            f"the corpus `{name}` lacks the folder {root / folder} ({why}): unpack it there."
        )
    return root / folder


def read_lines(path: Path) -> list[str]:
    """Returns the lines of a text file, without line ends and without empty ones. Raises
    ``UserError``."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text: {error}.") from error
    # Not splitlines: it also splits at the line separators of Unicode, which occur within
    # sentences.
    return [line for line in (line.rstrip("\r") for line in text.split("\n")) if line.strip()]


def bad_line(path: Path, number: int, line: str, wanted: str) -> UserError:
    """Returns the error for a line that is not as the format wants it; lines count from 1."""
    shown = line if len(line) <= 60 else line[:57] + "..."
    return UserError(f"{path} line {number} must be {wanted}, but is `{shown}` instead.")


def below(root: Path, path: Path) -> str:
    """Returns a path relative to the root, with forward slashes on every system."""
    return path.relative_to(root).as_posix()


def _holds(folder: Path, marks: Sequence[str]) -> bool:
    return any((folder / mark).exists() for mark in marks)


def _after(transform: Transform) -> Callable[[Path], AudioInfo]:
    def examined(path: Path) -> AudioInfo:
        samples = len(transform.apply(read_audio(path)))
        return AudioInfo(**{**vars(read_audio_info(path)), "samples": samples})

    return examined


def _identity(item: Recording, facts: Mapping[str, Fact]) -> list[object]:
    aligned = [item.alignment] if item.alignment else []
    return [item.key, item.split, dict(item.labels), facts[item.path].sha256, item.cut, *aligned]


def _utterance(item: Recording, samples: int) -> Utterance:
    alignment = tuple((start, label) for start, label in item.alignment if start < samples)
    return Utterance(
        key=item.key, split=item.split, samples=samples, labels=item.labels, alignment=alignment
    )


def _content(sha256: str, cut: tuple[int, int] | None) -> str:
    return sha256 if cut is None else f"{sha256}[{cut[0]}:{cut[1]}]"


def _samples(item: Recording, facts: Mapping[str, Fact]) -> int:
    whole = facts[item.path].samples
    return whole if item.cut is None else min(item.cut[1], whole) - item.cut[0]


def _check_keys(name: str, root: Path, items: Sequence[Recording]) -> None:
    twice = [key for key, count in Counter(item.key for item in items).items() if count > 1]
    if twice:
        raise UserError(
            f"the corpus `{name}` in {root} lists {len(twice)} recordings twice: {join_names(twice)}."
        )
    wrong = [
        item.key for item in items if item.cut is not None and not 0 <= item.cut[0] < item.cut[1]
    ]
    if wrong:
        raise ValueError(f"recordings of {name} are cut to nothing: {join_names(wrong)}")


def _told(faults: Mapping[str, str]) -> list[tuple[str, str]]:
    told = sorted(faults.items())[:MAX_NAMES]
    if len(faults) > MAX_NAMES:
        told.append(
            (
                f"and {len(faults) - MAX_NAMES} more",
                "set `on_bad_audio: skip` to go without such files",
            )
        )
    return told
