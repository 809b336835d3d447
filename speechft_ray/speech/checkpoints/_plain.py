"""Converts the content of untrusted files to plain JSON data."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from speechft_ray.core.errors import UserError
from speechft_ray.speech.checkpoints._standins import Container, Leaf, Namespace, StandIn

MAX_VALUES, MAX_DEPTH, MAX_TEXT = 200_000, 32, 100_000
"""Far above any published configuration (the largest, HuBERT's, has about 600 values beside 500
words of its dictionary). They bound the traversal of lists that contain themselves or many
references to each other."""

_MISSING = "???"  # omegaconf's mark for a value that was never set
_REFERENCE = re.compile(r"\$\{([a-z_]+(?:\.[a-z_]+){0,4})\}")


def to_plain_data(value: Any, where: str) -> Any:
    """Returns JSON data: mappings with text keys, lists, texts, finite numbers, booleans, None.

    Namespaces and omegaconf's containers become dictionaries and lists, tuples become lists. Raises
    ``UserError`` naming the place of any other kind of object.
    """
    return _Converter().convert(value, where, 0)


def resolve_references(value: Any) -> Any:
    """Returns a plain configuration of omegaconf without the values that were never set (``???``).

    References such as ``${task.normalize}`` are replaced by the single value that they name within
    ``value``; no other interpolation happens.
    """
    return _resolve(value, value)


class _Converter:
    """One traversal, with the number of values that it may still visit."""

    def __init__(self) -> None:
        self.remaining = MAX_VALUES

    def convert(self, value: Any, where: str, depth: int) -> Any:
        self.remaining -= 1
        if self.remaining < 0 or depth > MAX_DEPTH:
            raise UserError(
                f"{where} is nested or long beyond every configuration (over {MAX_DEPTH} deep or "
                f"{MAX_VALUES:,} values)."
            )
        value = _unwrap(value)
        if isinstance(value, Mapping):
            keys = {_check_key(key, where): item for key, item in value.items()}
            return {
                key: self.convert(item, f"{where}.{key}", depth + 1) for key, item in keys.items()
            }
        if isinstance(value, list | tuple):
            return [
                self.convert(item, f"{where}[{index}]", depth + 1)
                for index, item in enumerate(value)
            ]
        return self._convert_scalar(value, where)

    def _convert_scalar(self, value: Any, where: str) -> Any:
        if value is None or type(value) is bool:
            return value
        if type(value) is int and abs(value) < 2**63:
            return value
        if type(value) is float and math.isfinite(value):
            return value
        if type(value) is str and len(value) <= MAX_TEXT:
            return value
        kind = (
            "a text too long to be a setting" if type(value) is str else f"{_describe_type(value)}"
        )
        raise UserError(
            f"{where} is not plain data but {kind}. Allowed: texts, finite numbers, truth values, "
            "lists, mappings."
        )


def _unwrap(value: Any) -> Any:
    if isinstance(value, Namespace):
        return value.state
    if isinstance(value, Container):
        return value.state.get("_content")
    if isinstance(value, Leaf):
        return value.state.get("_val")
    return value


def _check_key(key: Any, where: str) -> str:
    if type(key) is not str or len(key) > 200 or not key.isprintable():
        raise UserError(
            f"{where} has a key that is no short text ({str(key)[:40]!r}), so it is no "
            "configuration."
        )
    return key


def _describe_type(value: Any) -> str:
    if type(value) in (int, float):
        return f"the number {str(value)[:20]}"
    return f"a {type(value).__name__}" + (" object" if isinstance(value, StandIn) else "")


def _resolve(value: Any, root: Any) -> Any:
    if isinstance(value, dict):
        return {key: _resolve(item, root) for key, item in value.items() if item != _MISSING}
    if isinstance(value, list):
        return [_resolve(item, root) for item in value]
    match = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return value
    target = root
    for name in match[1].split("."):
        target = target.get(name) if isinstance(target, dict) else None
    return value if isinstance(target, dict | list) or target is None else target
