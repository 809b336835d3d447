"""Makes a ``Corpus`` of recordings on disk; shared by all corpora that have files.

The module of a corpus lists its recordings with their labels. This module measures them, reports or
skips bad ones, and computes the identity: of key, split, labels and bytes of every recording.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from speechft_ray.core.errors import SpecError, UserError
from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.core.units import FRAME_FIELD_SAMPLES, SAMPLE_RATE_HZ
from speechft_ray.speech._levels import QUIET_PEAK
from speechft_ray.speech.audio import AudioInfo, read_audio, read_audio_info
from speechft_ray.speech.corpora._disk import is_litter, read_text, suggest_link
from speechft_ray.speech.corpora._files import (
    READ_WHOLE,
    FileFacts,
    Measurements,
    ReadInfo,
    describe_short_clip,
    measure,
)
from speechft_ray.speech.corpora._reading import IDENTITY, RecordingReader, Transform
from speechft_ray.speech.corpora.base import AudioSource, Corpus, CorpusFiles, Progress, Utterance

MAX_NAMES = 5
"""Names of a long list that a message has; the rest is counted."""

GO_WITHOUT = "; `on_bad_audio: skip` goes without it"
"""End of the sentence on a recording that may be left out."""


class DiskOptions(BaseModel):
    """Base of the options of corpora on disk: frozen, no unknown field."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    on_bad_audio: Literal["fail", "skip"] = "fail"
    """For a missing, unreadable, truncated, empty or too short recording (less than one frame of an
    encoder): refuse the corpus, or leave the recording out with a note."""


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One utterance of a corpus on disk.

    ``path`` is relative to the root. ``cut`` is the part ``[start, stop)`` of the file in samples
    at 16 kHz (``None``: all); it excludes a transform that changes the length. ``alignment`` counts
    from the start of the utterance (see ``Utterance``).
    """

    key: str
    path: str
    split: str
    labels: Mapping[str, str]
    cut: tuple[int, int] | None = None
    alignment: tuple[tuple[int, str], ...] = ()


_LEVELS: Mapping[str, Callable[[FileFacts], bool]] = {
    "have no length in their header, or another one than their content": (
        lambda file: file.is_longer
    ),
    "exceed full scale and are clipped there": lambda file: (file.peak or 0) > 1,
    f"never reach 1/{round(1 / QUIET_PEAK)} of full scale": (
        lambda file: file.peak is not None and file.peak < QUIET_PEAK
    ),
}
"""What a note says of the files that a rule concerns; peaks of 16-bit mono files are not known."""


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
    """Returns the corpus ``name`` of these recordings, in the order of their keys.

    All recordings have the same label columns. A cut that reaches beyond its file ends with it, and
    so does an alignment. Training utterances below ``min_train_samples`` are left out, and trials
    whose recordings were skipped. Raises ``UserError`` for a key that occurs twice and, unless
    ``options`` say skip, ``SpecError`` with the recordings that cannot be used.
    """
    is_thorough = options.on_bad_audio == "skip"
    facts, faults = _measure_recordings(
        name, root, recordings, transform, is_thorough, cache, progress
    )
    usable = _select_usable(name, root, recordings, facts, faults, options, min_train_samples)
    # Without short ones in train.
    good = [
        item
        for item in usable
        if item.split != "train" or _count_samples(item, facts) >= min_train_samples
    ]
    if count := len(usable) - len(good):
        least = min_train_samples / SAMPLE_RATE_HZ
        notes = (*notes, f"{count} training utterances of less than {least:.2f} s are left out.")
    _check_keys(name, root, good)
    # Trials and identity of what is left.
    by_key = {item.key: item for item in good}
    usable_trials = tuple(trial for trial in trials if trial[1] in by_key and trial[2] in by_key)
    content = [_identity(item, facts) for item in good]
    # "treatment" is the key of the transform in every identity that stores hold: it stays.
    identity = {"treatment": transform.name, "content": content, "trials": usable_trials}

    def source_of(key: str) -> AudioSource:
        return make_source(by_key[key].path, by_key[key].cut, facts[by_key[key].path])

    files = CorpusFiles(root=root, source_of=source_of, transform=transform.name)
    reader = RecordingReader(files, transform)
    return Corpus(
        name=name,
        fingerprint=fingerprint(identity),
        utterances=[_make_utterance(item, _count_samples(item, facts)) for item in good],
        read=reader.read,
        columns=frozenset(good[0].labels) if good else frozenset(),
        trials=usable_trials,
        missing_columns=missing_columns or {},
        notes=(*notes, *describe_conversions(facts), *describe_skipped(faults)),
        skipped=_count_skipped(recordings, usable),
        audio_ids={item.key: make_audio_id(source_of(item.key)) for item in good},
        speaker_namespace=speaker_namespace,
        hash_recording=reader.hash,
        files=files,
    )


def make_source(path: str, cut: tuple[int, int] | None, facts: FileFacts) -> AudioSource:
    """Returns the source of an utterance in a file with these facts."""
    return AudioSource(
        path=path,
        cut=cut,
        size_bytes=facts.size_bytes,
        modified_ns=facts.modified_ns,
        file_samples=facts.samples,
        sha256=facts.sha256,
    )


def make_audio_id(source: AudioSource) -> str:
    """Returns the identity of an utterance's audio, the same in every corpus with this file."""
    cut = source.cut
    return source.sha256 if cut is None else f"{source.sha256}[{cut[0]}:{cut[1]}]"


def describe_conversions(facts: Mapping[str, FileFacts]) -> list[str]:
    """Returns a sentence on the files that are resampled, one on those mixed down to mono, and one
    for each other way in which samples are not what a header or a format promises."""
    files = list(facts.values())
    sentences = []
    if rates := sorted({file.rate_hz for file in files} - {SAMPLE_RATE_HZ}):
        count = sum(file.rate_hz != SAMPLE_RATE_HZ for file in files)
        sentences.append(
            f"{count} of {len(files)} files are not at 16 kHz ({join_names(map(str, rates))} Hz) "
            "and are resampled."
        )
    if count := sum(file.channels > 1 for file in files):
        sentences.append(
            f"{count} of {len(files)} files have more than one channel and are mixed down to mono."
        )
    for what, concerns in _LEVELS.items():
        if names := [path for path, file in facts.items() if concerns(file)]:
            sentences.append(f"{len(names)} of {len(files)} files {what}: {join_names(names)}.")
    return sentences


def describe_skipped(faults: Mapping[str, str]) -> list[str]:
    """Returns the sentence on the files that were skipped."""
    if not faults:
        return []
    sentences = "; ".join(text for _, text in _make_mistakes(faults))
    return [f"{len(faults)} bad files are left out: {sentences}."]


def join_names(names: Iterable[str], count: int = MAX_NAMES) -> str:
    """Returns the first ``count`` names and how many more there are."""
    every = list(names)
    return ", ".join(every[:count]) + (
        f" and {len(every) - count} more" if len(every) > count else ""
    )


def require_root(name: str, root: Path | None, marks: Sequence[str]) -> Path:
    """Returns ``root`` when it has one of ``marks``, files or folders that this layout cannot lack.

    Raises ``UserError`` otherwise; the message names the right folder when that is the one above or
    one below.
    """
    if root is None:
        raise UserError(f"the corpus `{name}` needs the folder with its files.")
    if not root.is_dir():
        raise UserError(
            f"the corpus `{name}` is expected in the folder {root}, which does not exist."
            f"{suggest_link(root)}"
        )
    if _holds(root, marks):
        return root
    below = [
        child
        for child in sorted(root.iterdir())
        if child.is_dir() and not is_litter(child.name) and _holds(child, marks)
    ]
    right, how = (below[0], "high") if below else (root.absolute().parent, "low")
    if below or _holds(right, marks):
        raise UserError(
            f"{root} is one level too {how} for the corpus `{name}`, whose files are in {right}: "
            f"give that folder, or for a sweep make the folder `{name}` of --corpora a link to it."
        )
    raise UserError(
        f"{root} is not the folder of the corpus `{name}`: it holds none of {join_names(marks)}."
    )


def require_folder(name: str, root: Path, folder: str, why: str) -> Path:
    """Returns a folder below the root. Raises ``UserError`` when it is missing."""
    if not (root / folder).is_dir():
        raise UserError(
            f"the corpus `{name}` lacks the folder {root / folder} ({why}): unpack it there."
        )
    return root / folder


def read_lines(path: Path) -> list[str]:
    """Returns the lines of a text file without line ends, without empty lines.

    Raises ``UserError`` as ``read_text`` does.
    """
    # Not splitlines: it also splits at the line separators of Unicode, which occur in sentences.
    lines = (line.rstrip("\r") for line in read_text(path).split("\n"))
    return [line for line in lines if line.strip()]


def bad_line(path: Path, number: int, line: str, format_: str) -> UserError:
    """Returns the error for a line that is not in its format; lines count from 1."""
    shown = line if len(line) <= 60 else line[:57] + "..."
    return UserError(f"{path} line {number} must be {format_}, but is `{shown}` instead.")


def below(root: Path, path: Path) -> str:
    """Returns a path relative to the root, with forward slashes on every system."""
    return path.relative_to(root).as_posix()


def _measure_recordings(
    name: str,
    root: Path,
    recordings: Sequence[Recording],
    transform: Transform,
    is_thorough: bool,
    cache: Path,
    progress: Progress | None,
) -> Measurements:
    """Returns facts of the usable files, and a sentence for each that some recording cannot use."""
    paths = sorted({recording.path for recording in recordings})
    label = "-".join(re.findall(r"[a-z0-9_]+", f"{name} {transform.name}"))
    read_info: ReadInfo
    if not transform.keeps_length:  # decodes all
        read_info = _read_info_after(transform)
    elif is_thorough:
        read_info, label = READ_WHOLE, f"{label}-whole"
    else:
        read_info = read_audio_info
    facts, faults = measure(root, paths, cache, progress, name=label, read_info=read_info)
    for item in recordings:
        whole = facts[item.path].samples if item.path in facts else None
        # Only a transform can empty a wave. In train it is left out as a short utterance.
        if whole == 0 and item.split != "train":
            del facts[item.path]
            faults[item.path] = f"{root / item.path} holds nothing but pauses"
        elif whole and item.cut is not None and item.cut[0] >= whole:
            del facts[item.path]
            faults[item.path] = f"{root / item.path} ends before `{item.key}`, a part of it, begins"
    return Measurements(facts, faults)


def _select_usable(
    name: str,
    root: Path,
    recordings: Sequence[Recording],
    facts: Mapping[str, FileFacts],
    faults: dict[str, str],
    options: DiskOptions,
    min_train_samples: int,
) -> list[Recording]:
    """Returns the recordings that can be used, in the order of their keys, and adds to ``faults``
    those below one frame.

    Training utterances below ``min_train_samples`` are left out by a protocol: they are no fault.
    Raises ``SpecError`` for faults, unless ``options`` say skip, and ``UserError`` when nothing can
    be used.
    """
    fails, usable = options.on_bad_audio == "fail", []
    for item in recordings:
        if item.path not in facts:
            continue
        samples = _count_samples(item, facts)
        is_left_out = item.split == "train" and samples < min_train_samples
        if samples >= FRAME_FIELD_SAMPLES or is_left_out:
            usable.append(item)
            continue
        place = item.path if item.cut is None else item.key
        faults[place] = f"`{place}` {describe_short_clip(samples, GO_WITHOUT if fails else '')}"
    if faults and fails:
        raise SpecError(f"the corpus `{name}` in {root}", _make_mistakes(faults))
    if recordings and not usable:
        raise UserError(
            f"the corpus `{name}` in {root} has no recording that can be used: all "
            f"{len(recordings)} are left out, as {next(iter(faults.values())).rstrip('.')}."
        )
    return sorted(usable, key=lambda item: item.key)


def _count_skipped(recordings: Iterable[Recording], usable: Iterable[Recording]) -> dict[str, int]:
    """Returns by split how many recordings cannot be used."""
    counts = Counter(item.split for item in recordings)
    counts.subtract(item.split for item in usable)
    return {split: count for split, count in counts.items() if count}


def _holds(folder: Path, marks: Sequence[str]) -> bool:
    return any((folder / mark).exists() for mark in marks)


def _read_info_after(transform: Transform) -> Callable[[Path], AudioInfo]:
    def read_info(path: Path) -> AudioInfo:
        samples = len(transform.apply(read_audio(path)))
        return AudioInfo(**{**vars(read_audio_info(path)), "samples": samples})

    return read_info


def _identity(item: Recording, facts: Mapping[str, FileFacts]) -> list[object]:
    aligned = [item.alignment] if item.alignment else []
    return [item.key, item.split, dict(item.labels), facts[item.path].sha256, item.cut, *aligned]


def _make_utterance(item: Recording, samples: int) -> Utterance:
    alignment = tuple((start, label) for start, label in item.alignment if start < samples)
    return Utterance(
        key=item.key, split=item.split, samples=samples, labels=item.labels, alignment=alignment
    )


def _count_samples(item: Recording, facts: Mapping[str, FileFacts]) -> int:
    whole = facts[item.path].samples
    return whole if item.cut is None else min(item.cut[1], whole) - item.cut[0]


def _check_keys(name: str, root: Path, items: Sequence[Recording]) -> None:
    twice = [key for key, count in Counter(item.key for item in items).items() if count > 1]
    if twice:
        raise UserError(
            f"the corpus `{name}` in {root} lists {len(twice)} recordings twice: "
            f"{join_names(twice)}."
        )
    wrong = [
        item.key for item in items if item.cut is not None and not 0 <= item.cut[0] < item.cut[1]
    ]
    if wrong:
        raise ValueError(f"recordings of {name} are cut to nothing: {join_names(wrong)}")


def _make_mistakes(faults: Mapping[str, str]) -> list[tuple[str, str]]:
    mistakes = sorted(faults.items())[:MAX_NAMES]
    if len(faults) > MAX_NAMES:
        mistakes.append(
            (
                f"and {len(faults) - MAX_NAMES} more",
                "set `on_bad_audio: skip` to go without such files",
            )
        )
    return mistakes
