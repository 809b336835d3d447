"""What an encoder made of a corpus, kept on disk: found again by identity, checked by sha256,
bounded in bytes.

An entry is a unit of a store of its own (stage ``features``), so it is published by one rename and
complete when its manifest is there. The oldest entries make room for new ones. Nothing here is ever
needed: a lost entry is computed again.
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
"""Raised when code changes what features are, so that old entries are not found again."""

_STAGE, _FILE = "features", "rows.bin"
_DTYPES = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True)
class Entry:
    """Rows of utterances on disk. ``starts`` and ``counts``: where each utterance lies, in the
    order it was asked for."""

    reader: RowReader
    starts: Sequence[int]
    counts: Sequence[int]

    def rows(self, places: Iterable[int]) -> torch.Tensor:
        """Returns the rows of these utterances, one after the other."""
        return self.reader.read([(self.starts[place], self.counts[place]) for place in places])


class FeatureCache:
    """A folder of entries of at most ``budget_bytes`` together. Several processes may share it."""

    def __init__(self, root: Path, budget_bytes: int) -> None:
        self._store = Store(root)
        self.budget_bytes = budget_bytes

    @staticmethod
    def key(identity: Mapping[str, Any]) -> str:
        """Returns the name of an entry: everything that its numbers depend on, and the version of
        this code."""
        return fingerprint({"version": FEATURES_VERSION, **identity})

    def find(self, key: str) -> Entry | None:
        """Returns an entry, or ``None`` when there is none. One whose bytes have changed is thrown
        away."""
        if not self._store.is_complete(_STAGE, key):
            return None
        try:
            if self._store.find_damaged_files(_STAGE, key):
                raise ValueError("its bytes have changed")
            facts, folder = self._store.manifest(_STAGE, key), self._store.folder(_STAGE, key)
            os.utime(folder / MANIFEST)  # used now: the last to go
            reader = RowReader(folder / _FILE, facts["width"], _DTYPES[facts["dtype"]])
        except (
            OSError,
            UserError,
            KeyError,
            ValueError,
        ):  # damaged, or another process made room with it meanwhile
            self._store.discard(_STAGE, key)
            return None
        return Entry(reader, facts["starts"], facts["counts"])

    @contextmanager
    def write(self, key: str, utterances: int) -> Iterator[Callable[[int, torch.Tensor], None]]:
        """Yields ``append(place, rows)``, places in any order, for an entry that is published when
        the body ends well."""
        starts, counts = [0] * utterances, [0] * utterances
        facts: dict[str, Any] = {"starts": starts, "counts": counts}
        with self._store.publish(_STAGE, key, facts) as folder, RowWriter(folder / _FILE) as file:

            def append(place: int, rows: torch.Tensor) -> None:
                starts[place], counts[place] = file.rows, len(rows)
                file.append(rows)
                facts.update(width=rows.shape[1], dtype=str(rows.dtype).removeprefix("torch."))

            yield append
            file.close()

    def make_room(self, size_bytes: int) -> bool:
        """Makes room for a new entry by removing those that were used longest ago; false when it is
        larger than the budget."""
        if size_bytes > self.budget_bytes:
            return False
        known = sorted(self._entries())
        total = sum(size for _, size, _ in known)
        for _, size, key in known:
            if total + size_bytes <= self.budget_bytes:
                break
            self._store.discard(_STAGE, key)
            total -= size
        return True

    def _entries(self) -> list[tuple[float, int, str]]:
        """When each entry was last used, its bytes and its key."""
        found = []
        for key in self._store.fingerprints(_STAGE):
            path = self._store.folder(_STAGE, key) / MANIFEST
            try:
                files = json.loads(path.read_text(encoding="utf-8"))["files"]
                found.append(
                    (path.stat().st_mtime, sum(item["bytes"] for item in files.values()), key)
                )
            except (OSError, ValueError, KeyError):
                continue
        return found
