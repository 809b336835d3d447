"""Fingerprints: the identity of units of work, a shortened sha256 over canonical JSON."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from pydantic import BaseModel

LENGTH = 16
"""Hex digits of a fingerprint: 64 bits; a million units collide with a chance below 1e-7."""


def canonical_json(value: Any) -> str:
    """Returns one JSON text for one value: sorted keys, no blanks, finite numbers only.

    Raises ``TypeError`` for what JSON cannot represent (paths, sets, tensors) and ``ValueError``
    for NaN and infinities: an identity must not drop information.
    """
    return json.dumps(
        _plain(value, "value"),
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=True,
        allow_nan=False,
    )


def fingerprint(value: Any) -> str:
    """Returns the fingerprint of any value that ``canonical`` accepts."""
    return hashlib.sha256(canonical_json(value).encode("ascii")).hexdigest()[:LENGTH]


def file_sha256(path: Path) -> str:
    """Returns the full sha256 of a file's bytes."""
    with path.open("rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest()
            if hasattr(hashlib, "file_digest")
            else _digest(file)
        )


def _digest(file: Any) -> str:  # Python 3.10 has no hashlib.file_digest
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _plain(value: Any, path: str) -> Any:
    if isinstance(value, BaseModel):
        return _plain(value.model_dump(mode="python"), path)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{path} is {value}: only finite numbers have a fingerprint")
        # 1 and 1.0 are one value.
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if isinstance(value, list | tuple):
        return [_plain(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{path} has the key {key!r}: only text keys have a fingerprint")
        return {key: _plain(item, f"{path}.{key}") for key, item in value.items()}
    raise TypeError(f"{path} is a {type(value).__name__}, which has no canonical JSON form")
