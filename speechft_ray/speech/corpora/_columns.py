"""Columns of numbers and texts in one file that is mapped into memory, not read.

The file has the safetensors format: a JSON header, then plain little-endian arrays. A text column
is an array of UTF-8 bytes with the end of each text. Lone surrogates, which stand for bytes of
file names that are no UTF-8, are kept.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from speechft_ray.core.files import atomic_write

Arrays = Mapping[str, np.ndarray]

_FACTS, _SHA256 = "facts", "sha256"
_BYTES, _ENDS = ".bytes", ".ends"
_BLOCK_BYTES = 1 << 20
_DTYPES = {"U8": "u1", "I8": "i1", "I32": "<i4", "I64": "<i8"}
"""Names of number types in the format, and numpy's."""


class TextColumn:
    """Texts by row, decoded one by one."""

    def __init__(self, arrays: Arrays, name: str) -> None:
        self._bytes = arrays[name + _BYTES].data
        self._ends = arrays[name + _ENDS].data
        if len(self._ends) and self._ends[-1] != len(self._bytes):
            raise ValueError(f"the texts of {name} have another length than their ends say")

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, row: int) -> str:
        start = self._ends[row - 1] if row else 0
        return str(self._bytes[start : self._ends[row]], "utf-8", "surrogatepass")


def make_texts(name: str, texts: Iterable[str]) -> dict[str, np.ndarray]:
    """Returns the arrays of a text column."""
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
    return {
        name + _BYTES: np.frombuffer(b"".join(encoded), dtype=np.uint8),
        name + _ENDS: ends,
    }


def write_columns(path: Path, arrays: Arrays, facts: Mapping[str, Any]) -> None:
    """Replaces a file of columns as a whole; ``facts`` are JSON data beside them.

    Arrays have one dimension and are uint8, int8, int32 or int64. Raises ``OSError``.
    """
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name]).data)
    text = json.dumps(facts, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        save_file(dict(arrays), temporary, {_FACTS: text, _SHA256: digest.hexdigest()})


def read_columns(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the arrays of a file, mapped into memory, and its facts.

    Raises ``OSError``, and ``ValueError`` for a file that is truncated, damaged or of another kind.
    """
    arrays: dict[str, np.ndarray] = {}
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > path.stat().st_size:
            raise ValueError("it is no file of columns")
        header = json.loads(file.read(size))
        try:
            metadata = header.pop("__metadata__")
            facts, expected = json.loads(metadata[_FACTS]), metadata[_SHA256]
            spans = {
                name: (_DTYPES[item["dtype"]], *map(int, item["shape"]), *item["data_offsets"])
                for name, item in header.items()
            }
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError("it is no file of columns") from error
        # Hashed by reading and not in the mapping, whose pages would then be this process's.
        digest = hashlib.sha256()
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        for name in sorted(spans):
            dtype, length, start, end = spans[name]
            file.seek(8 + size + start)
            _update(digest, file, end - start)
            arrays[name] = np.frombuffer(mapped, dtype, length, 8 + size + start)
    if digest.hexdigest() != expected or not isinstance(facts, dict):
        raise ValueError("its bytes have changed")
    return arrays, facts


def _update(digest: Any, file: Any, size: int) -> None:
    while size:
        block = file.read(min(size, _BLOCK_BYTES))
        if not block:
            raise ValueError("it is truncated")
        digest.update(block)
        size -= len(block)
