"""A cache of features on disk: entries are looked up by identity, checked by sha256, and bounded
in bytes together.

An entry is a unit of a store of its own (stage ``features``). It is published by one rename and
complete when its manifest exists. The least recently used entries are removed for new ones. Every
entry can be computed again.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from speechft_ray.core.fingerprint import file_sha256, fingerprint
from speechft_ray.core.left_over import is_abandoned
from speechft_ray.core.store import FEATURES, MANIFEST, Store
from speechft_ray.speech.features.rows import RowReader, RowWriter

FEATURES_VERSION = 1
"""Raised when code changes the values of features, so that older entries are not used."""

_FILE = "rows.bin"
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}
_LASTING = "lasting"
"""Empty file beside the rows of an entry that other encoders use as well."""

_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _FullDiskError(Exception):
    """Ends the writing of an entry."""


@dataclass(frozen=True)
class Entry:
    """Rows of utterances on disk. ``starts`` and ``counts``: the first row and the number of rows
    of each utterance, in the order of the key."""

    reader: RowReader
    starts: Sequence[int]
    counts: Sequence[int]

    def rows(self, indices: Sequence[int]) -> torch.Tensor:
        """Returns the rows of these utterances, one after the other."""
        return self.reader.read([(self.starts[index], self.counts[index]) for index in indices])


class FeatureCache:
    """A folder of entries of at most ``budget_bytes`` in all. Several processes may share it."""

    def __init__(self, root: Path, budget_bytes: int) -> None:
        self._store = Store(root)
        self.budget_bytes = budget_bytes
        self.is_disk_full = False
        """Whether the disk was full before the budget was; then nothing more is written."""
        self.protected: frozenset[str] = frozenset()
        """Entries that ``make_room`` does not remove: those that the present work needs."""

    @staticmethod
    def key(identity: Mapping[str, Any]) -> str:
        """Returns the name of an entry: a fingerprint of ``identity``, everything that its values
        depend on, and of the version of this code."""
        return fingerprint({"version": FEATURES_VERSION, **identity})

    def find(self, key: str, *, verify: bool = True) -> Entry | None:
        """Returns an entry, or ``None`` when there is none. Removes an entry whose bytes have
        changed; ``verify`` compares their sha256, which one that was just written does not need.

        Raises ``OSError`` where an entry cannot be read and nothing shows that it is damaged: too
        many open files, a disk or a network file system that fails.
        """
        try:
            entry = self._open(key, verify)
        except FileNotFoundError:
            # There is none, or another process has removed it; with a manifest it lacks its rows.
            if self._store.is_complete(FEATURES, key):
                self._store.discard(FEATURES, key)
            return None
        except (KeyError, ValueError):
            self._store.discard(FEATURES, key)
            return None
        with suppress(OSError):  # a file of another user cannot be touched
            os.utime(self._store.folder(FEATURES, key) / MANIFEST)  # marks the most recent use
        return entry

    def _open(self, key: str, verify: bool) -> Entry:
        """Opens an entry. Raises ``OSError``, and ``KeyError`` or ``ValueError`` for a damaged
        one."""
        facts, folder = self._store.read_manifest(FEATURES, key), self._store.folder(FEATURES, key)
        for name, written in facts["files"].items() if verify else ():
            if file_sha256(folder / name) != written["sha256"]:
                raise ValueError(f"the bytes of {name} have changed")
        reader = RowReader(folder / _FILE, facts["width"], _DTYPES[facts["dtype"]])
        return Entry(reader, facts["starts"], facts["counts"])

    @contextmanager
    def write(
        self, key: str, utterances: int, *, lasting: bool = False
    ) -> Iterator[Callable[[int, torch.Tensor], None]]:
        """Yields ``append(index, rows)``, to be called once per utterance in any order. The entry
        is published when the body ends without an error.

        ``lasting``: other encoders use the entry too, so that it is removed after all that are not.
        When the disk is full, the entry is dropped without an error, and ``is_disk_full`` is set.
        """
        starts, counts = [0] * utterances, [0] * utterances
        facts: dict[str, Any] = {"starts": starts, "counts": counts}
        try:
            with suppress(_FullDiskError), ExitStack() as stack:
                file = self._open_file(stack, key, facts, lasting)

                def append(index: int, rows: torch.Tensor) -> None:
                    if file is None or self.is_disk_full:
                        return
                    starts[index], counts[index] = file.rows, len(rows)
                    facts.update(width=rows.shape[1], dtype=str(rows.dtype).removeprefix("torch."))
                    try:
                        file.append(rows)
                    except OSError as error:
                        self._end_writing(error)

                yield append
                if file is None or self.is_disk_full:
                    raise _FullDiskError
                file.close()
        except OSError as error:
            self._end_writing(error)

    def _open_file(
        self, stack: ExitStack, key: str, facts: Mapping[str, Any], lasting: bool
    ) -> RowWriter | None:
        """Opens the file of a new entry, which ``stack`` publishes; ``None`` on a full disk."""
        try:
            folder = stack.enter_context(self._store.publish(FEATURES, key, facts))
            if lasting:
                (folder / _LASTING).touch()
            return stack.enter_context(RowWriter(folder / _FILE))
        except OSError as error:
            self._end_writing(error)
            return None

    def _end_writing(self, error: OSError) -> None:
        """Notes a full disk; raises any other error."""
        if error.errno not in _FULL_DISK:
            raise error
        self.is_disk_full = True

    def make_room(self, size_bytes: int) -> bool:
        """Removes entries until a new one of this size fits: the least recently used first, and
        those that other encoders use (``lasting``) after all others. Files of writers that were
        killed go in any case.

        Returns false, and removes no entry, when it does not fit beside those that are
        ``protected`` and those that are being written, or the disk is full.
        """
        entries, unfinished = self._entries(), self._count_unfinished()
        total = unfinished + sum(size for _, _, size, _ in entries)
        needed = unfinished + sum(size for _, _, size, key in entries if key in self.protected)
        if needed + size_bytes > self.budget_bytes or self.is_disk_full:
            return False
        for _, _, size, key in sorted(entries):
            if total + size_bytes <= self.budget_bytes:
                break
            if key not in self.protected:
                self._store.discard(FEATURES, key)
                total -= size
        return True

    def _count_unfinished(self) -> int:
        """Returns the bytes of entries that are being written, and removes what writers left that
        were killed."""
        unfinished = 0
        for entry in self._store.list_left_over(FEATURES):
            if is_abandoned(entry):
                self._store.remove_entry(FEATURES, entry.name)
            else:
                unfinished += entry.bytes
        return unfinished

    def _entries(self) -> list[tuple[bool, float, int, str]]:
        """Returns whether other encoders use it, the time of last use, the bytes and the key of
        each entry."""
        entries = []
        for key in self._store.fingerprints(FEATURES):
            folder = self._store.folder(FEATURES, key)
            try:
                size_bytes = (folder / _FILE).stat().st_size
                used = (folder / MANIFEST).stat().st_mtime
                entries.append(((folder / _LASTING).exists(), used, size_bytes, key))
            except OSError:
                continue  # another process has removed it
        return entries
