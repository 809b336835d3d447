"""The copies of units on a node, within a budget: the least recently used are removed."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from speechft_ray.core.store import MANIFEST

STAGES = ("encoder", "finetune", "merge")
"""Stages with weights; units of all others are small and stay."""

RECENT_SECONDS = 600.0
"""A copy that was used within this time may be about to be read, and is never removed."""


class LocalCopies:
    """Copies of units below a folder."""

    def __init__(self, root: Path, budget_bytes: int) -> None:
        self._root, self._budget = root, budget_bytes

    def note_use(self, folder: Path) -> None:
        """Notes that a copy is used now."""
        with suppress(OSError):
            os.utime(folder)

    def make_room(self, size_bytes: int) -> None:
        """Removes the files of copies until so many bytes more are within the budget, the least
        recently used first. Manifests stay. Where all were used just now, nothing is removed."""
        copies = []
        for stage in STAGES:
            for folder in (self._root / stage).glob("[!.]*"):
                with suppress(OSError):
                    size = sum(file.stat().st_size for file in _list_files(folder))
                    copies.append((folder.stat().st_mtime, size, folder))
        total = sum(size for _, size, _ in copies) + size_bytes
        for used, size, folder in sorted(copies):
            if total <= self._budget or time.time() - used < RECENT_SECONDS:
                return
            for file in _list_files(folder):
                file.unlink(missing_ok=True)
            total -= size


def has_size(path: Path, size: int) -> bool:
    """Whether there is a file of so many bytes."""
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def read_content(path: Path) -> bytes | None:
    """Returns the bytes of a file; ``None`` where there is none that can be read."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def _list_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST]
