"""Tells a full disk from other errors: libraries report it in their own ways."""

from __future__ import annotations

import errno
from collections.abc import Iterator

_NUMBERS = (errno.ENOSPC, errno.EDQUOT)
_TEXTS = (
    "No space left on device",
    "Disk quota exceeded",
    "database or disk is full",
    "PytorchStreamWriter failed writing file",
    "OutOfDiskError",
)
"""Of safetensors and other Rust code, SQLite, torch, and Ray."""


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or one that led to it, says that a disk or quota is full."""
    return any(
        (isinstance(each, OSError) and each.errno in _NUMBERS) or says_disk_full(str(each))
        for each in _list_causes(error)
    )


def says_disk_full(text: str) -> bool:
    """Whether the text of an error says so; of errors from other processes there is no more."""
    return any(words in text for words in _TEXTS)


def _list_causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
