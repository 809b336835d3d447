"""A cache of features on disk: entries are looked up by identity, checked by sha256, and bounded
in bytes together.

An entry is a unit of a store of its own (stage ``features``). It is published by one rename and
complete when its manifest exists. The least recently used entries are removed for new ones. Every
entry can be computed again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from speechft_ray.core.errors import UserError
from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.core.store import MANIFEST, Store
from speechft_ray.speech.features.rows import RowReader, RowWriter

FEATURES_VERSION = 1
"""Raised when code changes the values of features, so that older entries are not used."""

_STAGE, _FILE = "features", "rows.bin"
_DTYPES = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True)
class Entry:
    """Rows of utterances on disk. ``starts`` and ``counts``: the first row and the number of rows
    of each utterance, in the order of the key."""

    reader: RowReader
    starts: Sequence[int]
    counts: Sequence[int]

    def rows(self, indices: Iterable[int]) -> torch.Tensor:
        """Returns the rows of these utterances, one after the other."""
        return self.reader.read([(self.starts[index], self.counts[index]) for index in indices])


class FeatureCache:
    """A folder of entries of at most ``budget_bytes`` in all. Several processes may share it."""

    def __init__(self, root: Path, budget_bytes: int) -> None:
        self._store = Store(root)
        self.budget_bytes = budget_bytes

    @staticmethod
    def key(identity: Mapping[str, Any]) -> str:
        """Returns the name of an entry: a fingerprint of ``identity``, everything that its values
        depend on, and of the version of this code."""
        return fingerprint({"version": FEATURES_VERSION, **identity})

    def find(self, key: str) -> Entry | None:
        """Returns an entry, or ``None`` when there is none. Removes an entry whose bytes have
        changed."""
        if not self._store.is_complete(_STAGE, key):
            return None
        try:
            if self._store.find_damaged_files(_STAGE, key):
                raise ValueError("its bytes have changed")
            facts, folder = self._store.manifest(_STAGE, key), self._store.folder(_STAGE, key)
            os.utime(folder / MANIFEST)  # marks the most recent use
            reader = RowReader(folder / _FILE, facts["width"], _DTYPES[facts["dtype"]])
        except (OSError, UserError, KeyError, ValueError):
            # The entry is damaged, or another process has removed it meanwhile.
            self._store.discard(_STAGE, key)
            return None
        return Entry(reader, facts["starts"], facts["counts"])

    @contextmanager
    def write(self, key: str, utterances: int) -> Iterator[Callable[[int, torch.Tensor], None]]:
        """Yields ``append(index, rows)``, to be called once per utterance in any order. The entry
        is published when the body ends without an error."""
        starts, counts = [0] * utterances, [0] * utterances
        facts: dict[str, Any] = {"starts": starts, "counts": counts}
        with self._store.publish(_STAGE, key, facts) as folder, RowWriter(folder / _FILE) as file:

            def append(index: int, rows: torch.Tensor) -> None:
                starts[index], counts[index] = file.rows, len(rows)
                file.append(rows)
                facts.update(width=rows.shape[1], dtype=str(rows.dtype).removeprefix("torch."))

            yield append
            file.close()

    def make_room(self, size_bytes: int) -> bool:
        """Removes the least recently used entries until a new one of this size fits. Returns false,
        and removes nothing, when it is larger than the budget."""
        if size_bytes > self.budget_bytes:
            return False
        entries = sorted(self._entries())
        total = sum(size for _, size, _ in entries)
        for _, size, key in entries:
            if total + size_bytes <= self.budget_bytes:
                break
            self._store.discard(_STAGE, key)
            total -= size
        return True

    def _entries(self) -> list[tuple[float, int, str]]:
        """Returns the time of last use, the bytes and the key of each entry."""
        entries = []
        for key in self._store.fingerprints(_STAGE):
            path = self._store.folder(_STAGE, key) / MANIFEST
            try:
                files = json.loads(path.read_text(encoding="utf-8"))["files"]
                size_bytes = sum(item["bytes"] for item in files.values())
                entries.append((path.stat().st_mtime, size_bytes, key))
            except (OSError, ValueError, KeyError):
                continue
        return entries
