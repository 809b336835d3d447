"""A corpus in columns: utterances are made when somebody asks for them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from speechft_ray.speech.corpora._columns import Arrays, TextColumn, make_texts
from speechft_ray.speech.corpora._layout import make_audio_id
from speechft_ray.speech.corpora._reading import GAIN_MINUS_3_DB, IDENTITY, RecordingReader
from speechft_ray.speech.corpora._vad import REMOVE_SILENCE
from speechft_ray.speech.corpora.base import (
    SPLITS,
    AudioSource,
    Corpus,
    CorpusFiles,
    FileState,
    Utterance,
)

_TRANSFORMS = {
    transform.name: transform for transform in (IDENTITY, GAIN_MINUS_3_DB, REMOVE_SILENCE)
}
_LABEL = "label."
_NO_CUT = -1


def make_arrays(corpus: Corpus) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the utterances and trials of a corpus on disk as arrays, and the facts beside
    them."""
    assert corpus.files is not None
    utterances, files = corpus.utterances, corpus.files
    sources = [files.source_of(utterance.key) for utterance in utterances]
    keys = [utterance.key for utterance in utterances]
    by_key = sorted(range(len(keys)), key=keys.__getitem__)
    row_of = {key: row for row, key in enumerate(keys)}
    cuts = [source.cut or (_NO_CUT, _NO_CUT) for source in sources]
    numbers = {
        "split": ([SPLITS.index(item.split) for item in utterances], np.int8),
        "samples": ([item.samples for item in utterances], np.int64),
        "by_key": (by_key, np.int32),
        "size_bytes": ([source.size_bytes for source in sources], np.int64),
        "modified_ns": ([source.modified_ns for source in sources], np.int64),
        "file_samples": ([source.file_samples for source in sources], np.int64),
        "cut_start": ([start for start, _ in cuts], np.int64),
        "cut_stop": ([stop for _, stop in cuts], np.int64),
        "trial_same": ([same for same, _, _ in corpus.trials], np.int8),
        "trial_one": ([row_of[one] for _, one, _ in corpus.trials], np.int32),
        "trial_other": ([row_of[other] for _, _, other in corpus.trials], np.int32),
        "alignment_ends": (np.cumsum([len(item.alignment) for item in utterances]), np.int64),
        "alignment_starts": ([at for item in utterances for at, _ in item.alignment], np.int64),
    }
    arrays = {name: np.asarray(values, dtype) for name, (values, dtype) in numbers.items()}
    arrays |= make_texts("key", keys)
    # A path is empty where it is the key, as in most corpora.
    arrays |= make_texts(
        "path",
        ("" if one.path == key else one.path for one, key in zip(sources, keys, strict=True)),
    )
    arrays |= make_texts("sha256", (source.sha256 for source in sources))
    arrays |= make_texts("alignment", (text for item in utterances for _, text in item.alignment))
    for column in corpus.columns:
        texts = [utterance.labels[column] for utterance in utterances]
        codes = {text: code for code, text in enumerate(dict.fromkeys(texts))}
        arrays[f"{_LABEL}{column}.codes"] = np.asarray([codes[text] for text in texts], np.int32)
        arrays |= make_texts(_LABEL + column, codes)
    facts = {
        "name": corpus.name,
        "fingerprint": corpus.fingerprint,
        "columns": sorted(corpus.columns),
        "missing_columns": dict(corpus.missing_columns),
        "notes": list(corpus.notes),
        "skipped": dict(corpus.skipped),
        "speaker_namespace": corpus.speaker_namespace,
        "root": str(files.root),
        "transform": files.transform,
        "stays_inside": files.stays_inside,
        "others": dict(files.others),
    }
    return arrays, facts


def make_corpus(arrays: Arrays, facts: Mapping[str, Any]) -> Corpus:
    """Returns the corpus of arrays and facts. Raises ``ValueError``, ``KeyError`` or ``TypeError``
    where they are those of something else."""
    table = _Table(arrays, facts["columns"])
    files = CorpusFiles(
        root=Path(facts["root"]),
        source_of=table.find_source,
        transform=facts["transform"],
        stays_inside=facts["stays_inside"],
        others={path: state and FileState(*state) for path, state in facts["others"].items()},
    )
    reader = RecordingReader(files, _TRANSFORMS[files.transform])
    return Corpus(
        name=facts["name"],
        fingerprint=facts["fingerprint"],
        utterances=LazyUtterances(table, np.arange(table.count, dtype=np.int32)),
        read=reader.read,
        columns=frozenset(facts["columns"]),
        trials=_LazyTrials(table),
        missing_columns=facts["missing_columns"],
        notes=facts["notes"],
        skipped=facts["skipped"],
        audio_ids=_LazyAudioIds(table),
        speaker_namespace=facts["speaker_namespace"],
        hash_recording=reader.hash,
        files=files,
    )


class _Table:
    """The columns of a corpus, by row."""

    def __init__(self, arrays: Arrays, columns: Sequence[str]) -> None:
        self.arrays = arrays
        self.keys, self.paths = TextColumn(arrays, "key"), TextColumn(arrays, "path")
        self.hashes, self.alignment = TextColumn(arrays, "sha256"), TextColumn(arrays, "alignment")
        self.labels = [
            (name, arrays[f"{_LABEL}{name}.codes"].data, TextColumn(arrays, _LABEL + name))
            for name in columns
        ]
        self.count = len(self.keys)
        self.by_key = arrays["by_key"].data
        self.samples, self.splits = arrays["samples"].data, arrays["split"].data
        lengths = {len(self.paths), len(self.hashes), len(self.by_key), len(self.samples)}
        lengths |= {len(codes) for _, codes, _ in self.labels} | {len(self.splits)}
        if lengths != {self.count}:
            raise ValueError("columns differ in length")

    def find_row(self, key: str) -> int:
        """Returns the row of a key. Raises ``KeyError``."""
        place = bisect_left(self.by_key, key, key=self.keys.__getitem__)
        if place < self.count and self.keys[row := self.by_key[place]] == key:
            return row
        raise KeyError(key)

    def make_utterance(self, row: int) -> Utterance:
        """Returns the utterance of a row."""
        return Utterance(
            key=self.keys[row],
            split=SPLITS[self.splits[row]],
            samples=self.samples[row],
            labels={name: texts[codes[row]] for name, codes, texts in self.labels},
            alignment=self._make_alignment(row) if len(self.alignment) else (),
        )

    def _make_alignment(self, row: int) -> tuple[tuple[int, str], ...]:
        ends, starts = self.arrays["alignment_ends"], self.arrays["alignment_starts"]
        steps = range(int(ends[row - 1]) if row else 0, int(ends[row]))
        return tuple((int(starts[step]), self.alignment[step]) for step in steps)

    def find_source(self, key: str) -> AudioSource:
        """Returns the source of the utterance with a key. Raises ``KeyError``."""
        row = self.find_row(key)
        number = {name: int(self.arrays[name][row]) for name in _SOURCE_NUMBERS}
        cut = (number.pop("cut_start"), number.pop("cut_stop"))
        return AudioSource(
            path=self.paths[row] or key,
            cut=None if cut[0] == _NO_CUT else cut,
            sha256=self.hashes[row],
            **number,
        )


_SOURCE_NUMBERS = ("size_bytes", "modified_ns", "file_samples", "cut_start", "cut_stop")


class LazyUtterances(Sequence[Utterance]):
    """Utterances of some rows, made anew at each access. Equal to any sequence of equal ones."""

    def __init__(self, table: _Table, rows: np.ndarray) -> None:
        self._table, self._rows = table, rows

    def of_split(self, split: str) -> LazyUtterances:
        """Returns the utterances of one split."""
        has_split = self._table.arrays["split"][self._rows] == SPLITS.index(split)
        return LazyUtterances(self._table, self._rows[has_split])

    def lengths(self) -> np.ndarray:
        """Returns the samples of each utterance, without making any."""
        samples: np.ndarray = self._table.arrays["samples"][self._rows]
        return samples

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Utterance: ...
    @overload
    def __getitem__(self, index: slice) -> LazyUtterances: ...
    def __getitem__(self, index: int | slice) -> Utterance | LazyUtterances:
        if isinstance(index, slice):
            return LazyUtterances(self._table, self._rows[index])
        return self._table.make_utterance(int(self._rows[index]))

    def __iter__(self) -> Iterator[Utterance]:
        return (self._table.make_utterance(row) for row in self._rows.data)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


class _LazyAudioIds(Mapping[str, str]):
    """Identities of recordings by key."""

    def __init__(self, table: _Table) -> None:
        self._table = table

    def __getitem__(self, key: str) -> str:
        return make_audio_id(self._table.find_source(key))

    def __iter__(self) -> Iterator[str]:
        return (self._table.keys[row] for row in range(self._table.count))

    def __len__(self) -> int:
        return self._table.count


class _LazyTrials(Sequence[tuple[bool, str, str]]):
    """Trials by number."""

    def __init__(self, table: _Table) -> None:
        self._table = table
        self._same, self._one, self._other = (
            table.arrays[f"trial_{name}"] for name in ("same", "one", "other")
        )

    def __len__(self) -> int:
        return len(self._same)

    @overload
    def __getitem__(self, index: int) -> tuple[bool, str, str]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[bool, str, str]]: ...
    def __getitem__(
        self, index: int | slice
    ) -> tuple[bool, str, str] | list[tuple[bool, str, str]]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        keys = self._table.keys
        return (
            bool(self._same[index]),
            keys[int(self._one[index])],
            keys[int(self._other[index])],
        )
