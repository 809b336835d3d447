"""Interface of corpora: utterances by split, a function that reads one, and the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from pydantic import BaseModel

from speechft_ray.core.registry import Registry

SPLITS = ("train", "dev", "test")
"""The only split names."""

NO_SPEAKER = "none"
"""The ``speaker`` of a recording without speech, or of an unknown speaker."""


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One recording.

    ``samples``: length at 16 kHz. ``labels`` maps a column (``speaker``, ``text``, ``phones``,
    ``emotion``, ``slots``, ...) to its text; sequences are separated by blanks. ``alignment`` is
    the source of frame targets: ``(start_sample, label)`` pairs at 16 kHz in ascending order, each
    label valid to the next start, with an empty label where no target exists. It is empty for a
    corpus without alignments.
    """

    key: str
    split: str
    samples: int
    labels: Mapping[str, str]
    alignment: tuple[tuple[int, str], ...] = ()

    @property
    def seconds(self) -> float:
        return self.samples / 16_000


@runtime_checkable
class SplitUtterances(Protocol):
    """Utterances that know those of each split, so that nobody makes all to select some."""

    def of_split(self, split: str) -> Sequence[Utterance]: ...


class AudioSource(NamedTuple):
    """Where the audio of an utterance lies, and what its file was like when it was measured.

    ``path`` is that of the file below the root, as it is spelled on disk; ``cut`` the part
    ``[start, stop)`` of it in samples at 16 kHz (``None``: all); ``file_samples`` the samples of
    all of it.
    """

    path: str
    cut: tuple[int, int] | None
    size_bytes: int
    modified_ns: int
    file_samples: int
    sha256: str


class FileState(NamedTuple):
    """What says that a file is still the same without reading it."""

    size_bytes: int
    modified_ns: int


@dataclass(frozen=True, kw_only=True)
class CorpusFiles:
    """The files of a corpus on disk.

    - ``source_of`` returns the source of the utterance with a key.
    - ``transform`` is the name of what is done to every wave.
    - ``stays_inside``: whether links may not leave the root.
    - ``others``: states of the files that are read beside those of utterances, by path below the
      root, ``None`` for a file that is missing; only for a kind that ``is_list``.
    """

    root: Path
    source_of: Callable[[str], AudioSource]
    transform: str = ""
    stays_inside: bool = False
    others: Mapping[str, FileState | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Utterances and how to read them.

    - ``fingerprint``: identity of the content (audio and labels), independent of its place on disk.
    - ``read(utterance)`` returns mono float32 at 16 kHz in [-1, 1], shape ``(samples,)``. Several
      threads may call it at once.
    - ``is_in_memory``: ``read`` only copies, from memory or a mapped file; threads that read ahead
      would cost more than they save.
    - ``trials``: pairs for speaker verification: (same speaker, key, key), with keys of one split.
    - ``missing_columns``: label columns that this corpus could have, each with a sentence that says
      what it needs.
    - ``notes``: sentences for the user about what reading changes and what was left out.
    - ``skipped``: by split, the number of recordings that were left out because they cannot be read
      (only with ``on_bad_audio: skip``).
    - ``audio_ids``: by key, the identity of each utterance's audio, which is the same in any corpus
      with this recording; may be empty.
    - ``speaker_namespace``: equal speaker names are one person in all corpora of one namespace;
      empty: in corpora of one name.
    - ``hash_recording(utterance, at_most)``: hash of the decoded recording of an utterance (of its
      first ``at_most`` samples), equal for lossless copies in any format; ``None`` for a corpus
      without recordings.
    - ``files``: where the recordings lie; ``None`` for a corpus without files of its own.
    """

    name: str
    fingerprint: str
    utterances: Sequence[Utterance]
    read: Callable[[Utterance], np.ndarray]
    columns: frozenset[str] = field(default_factory=frozenset)
    trials: Sequence[tuple[bool, str, str]] = ()
    missing_columns: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)
    audio_ids: Mapping[str, str] = field(default_factory=dict)
    speaker_namespace: str = ""
    hash_recording: Callable[[Utterance, int | None], str] | None = None
    is_in_memory: bool = False
    files: CorpusFiles | None = None

    def split(self, name: str) -> Sequence[Utterance]:
        """Returns the utterances of one split in corpus order."""
        if isinstance(self.utterances, SplitUtterances):
            return self.utterances.of_split(name)
        return [utterance for utterance in self.utterances if utterance.split == name]


class Progress(Protocol):
    """Called with the work done and the total, in any unit."""

    def __call__(self, done: int, total: int) -> None: ...


@dataclass(frozen=True, kw_only=True)
class ExpectedCounts:
    """Numbers of a complete copy of a corpus by split, as published by ``source``.

    Numbers that the source lacks are left out. ``classes`` counts the different labels of a column
    in all splits, ``trials`` the trials of the test split.
    """

    source: str
    utterances: Mapping[str, int]
    hours: Mapping[str, float] = field(default_factory=dict)
    speakers: Mapping[str, int] = field(default_factory=dict)
    classes: Mapping[str, int] = field(default_factory=dict)
    trials: int | None = None


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What is known of a corpus that is not made yet: utterances by split, their mean length, and
    their label columns."""

    utterances: Mapping[str, int]
    mean_seconds: float
    columns: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Resource:
    """A list or lexicon below a corpus' root that does not come with its recordings."""

    path: str
    url: str
    what: str


def _compute_no_counts(options: Any) -> ExpectedCounts | None:
    return None


@dataclass(frozen=True, kw_only=True)
class CorpusKind:
    """A registered kind of corpus.

    - ``options``: frozen pydantic model of the options, which are its identity (never paths).
    - ``open(options, root, cache, progress)`` returns the corpus. ``root`` is where the user keeps
      the files (a folder or a manifest file; ``None`` for a corpus that is synthesised), ``cache``
      a folder of the store for what is computed.
    - ``layout``: one line that says what the root holds.
    - ``is_list``: whether the root is a list that names every file, so that no other file beside it
      matters.
    - ``expected(options)`` returns the numbers of a complete copy, where they are published.
    - ``resources``: files that the recordings come without.
    - ``estimate(options)`` returns the size of a corpus that is synthesised, before it is.
    - ``package_folder``: the root that a package of Debian makes, and ``install`` the command line
      that installs it.
    """

    options: type[BaseModel]
    open: Callable[..., Corpus]
    needs_root: bool
    layout: str
    is_list: bool = False
    expected: Callable[[Any], ExpectedCounts | None] = _compute_no_counts
    resources: Sequence[Resource] = ()
    estimate: Callable[[Any], Estimate] | None = None
    package_folder: Path | None = None
    install: str = ""
    version: int = 1
    """Raised when a synthesised corpus would change; part of its identity."""


CORPORA: Registry[CorpusKind] = Registry("corpus", "speechft_ray.speech.corpora")


def find_corpus_folder(name: str, corpora: Path | None) -> Path | None:
    """Returns where a corpus lies: below ``corpora``, else where a package of Debian put it;
    ``None`` where it is at neither place."""
    own, package = corpora / name if corpora else None, CORPORA.get(name).package_folder
    if own and own.exists():
        return own
    return package if package and package.is_dir() else None
