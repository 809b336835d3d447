"""What a corpus is to the rest of the house: utterances by split, and a way to read one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from pydantic import BaseModel

from speechft_ray.core.registry import Registry

SPLITS = ("train", "dev", "test")
"""The only split names."""

NO_SPEAKER = "none"
"""The ``speaker`` of a recording in which nobody, or nobody known, speaks."""


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One recording.

    ``labels`` maps a column (``speaker``, ``text``, ``phones``, ``emotion``, ``slots``, ...) to its
    text; sequences are separated by blanks. ``alignment`` holds ``(start_sample, label)`` pairs at
    16 kHz in ascending order, each label valid to the next start, and an empty one says that
    nothing there has a label; the source of frame targets. Empty where the corpus has no alignment.
    """

    key: str
    split: str
    samples: int
    labels: Mapping[str, str]
    alignment: tuple[tuple[int, str], ...] = ()

    @property
    def seconds(self) -> float:
        return self.samples / 16_000


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Utterances and how to read them.

    ``fingerprint`` is the identity of the content (audio and labels), never of its place on disk.
    ``read(utterance)`` returns mono float32 at 16 kHz in [-1, 1], shape ``(samples,)``. ``trials``
    are pairs to verify: whether both were said by one speaker, and the keys of two utterances of
    one split. ``missing_columns`` holds label columns that this corpus could have, each with the sentence
    that says what it needs. ``notes`` are sentences to tell once: what reading changes and what was
    left out. ``skipped`` counts, by split, the recordings that were left out because they cannot be
    read (only with ``on_bad_audio: skip``). ``audio_ids`` has, by key, the identity of each
    utterance's audio, the same in any corpus that has this recording; it may be empty. ``speaker_namespace``
    says whom the column ``speaker`` names: equal names are one person in corpora of the same
    ``speaker_namespace``; empty: in corpora of the same name.
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

    def split(self, name: str) -> list[Utterance]:
        """Returns the utterances of one split in corpus order."""
        return [utterance for utterance in self.utterances if utterance.split == name]


class Progress(Protocol):
    """Called with work done and work in all, in any unit."""

    def __call__(self, done: int, total: int) -> None: ...


@dataclass(frozen=True, kw_only=True)
class ExpectedCounts:
    """What a complete copy of a corpus has, by split, as its ``source`` says. What the source does
    not tell is left out.

    ``classes`` counts the different labels of a column in all splits, ``trials`` those of the test
    split.
    """

    source: str
    utterances: Mapping[str, int]
    hours: Mapping[str, float] = field(default_factory=dict)
    speakers: Mapping[str, int] = field(default_factory=dict)
    classes: Mapping[str, int] = field(default_factory=dict)
    trials: int | None = None


@dataclass(frozen=True, kw_only=True)
class Resource:
    """A list or lexicon that belongs below a corpus' root but does not come with its recordings."""

    path: str
    url: str
    what: str


def _nothing_expected(options: Any) -> ExpectedCounts | None:
    return None


@dataclass(frozen=True, kw_only=True)
class CorpusKind:
    """A registered way to get a corpus.

    ``options`` is the frozen pydantic model of its identity options (never paths). ``open(options,
    root, cache, progress)`` returns the corpus: ``root`` is where the user keeps the files (a
    folder or a manifest file; ``None`` when the corpus makes itself), ``cache`` a folder of the
    store in which it may publish what it made. ``layout`` says in a line what the root holds.
    ``expected(options)`` returns what a complete copy has, where that is known.
    """

    options: type[BaseModel]
    open: Callable[..., Corpus]
    needs_root: bool
    layout: str
    expected: Callable[[Any], ExpectedCounts | None] = _nothing_expected
    resources: Sequence[Resource] = ()
    version: int = 1
    """Raised when a corpus that makes itself would sound or read differently; part of its
    identity."""


CORPORA: Registry[CorpusKind] = Registry("corpus", "speechft_ray.speech.corpora")
