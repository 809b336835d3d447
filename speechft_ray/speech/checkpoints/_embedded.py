"""What we leave in the files of others, under a key of our own that their loaders do not look at.

The formats of others have no place for how an encoder was made, and fairseq's has none for every
key of a configuration. So ``.pt`` files that we write carry both. A file that somebody has edited
since is believed, and what we left in it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from speechft_ray.core.errors import UserError
from speechft_ray.core.fingerprint import canonical_json
from speechft_ray.speech.checkpoints._plain import to_plain_data
from speechft_ray.speech.encoders.base import EncoderWeights

KEY = "speechft_ray"
FORMAT = 1
"""Raised when a reader of the old format would misread the new one."""


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """What we know of a file that we wrote. ``filled``: parameters that are zeros for the sake of a
    strict loader."""

    family: str
    config: Mapping[str, Any]
    made: Mapping[str, Any]
    filled: tuple[str, ...] = ()


def embed(
    weights: EncoderWeights, made: Mapping[str, Any], filled: Sequence[str] = ()
) -> dict[str, Any]:
    """Returns the plain data to store under ``KEY``. Raises ``TypeError`` or ``ValueError`` for
    what JSON cannot say."""
    found = {
        "format": FORMAT,
        "family": weights.family,
        "config": dict(weights.config),
        "made": dict(made),
        "filled": list(filled),
    }
    canonical_json(found)
    return deepcopy(found)  # a part shared with the rest of the file would change with it


def read_embedded(data: Any, where: str) -> Embedded | None:
    """Returns what ``embed`` stored, or None where there is nothing, or nothing that this version
    reads."""
    if data is None:
        return None
    try:
        found = to_plain_data(data, where)
    except UserError:
        return None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        return None
    kinds = {"family": str, "config": dict, "made": dict, "filled": list}
    if not all(isinstance(found.get(key), kind) for key, kind in kinds.items()):
        return None
    filled = tuple(name for name in found["filled"] if isinstance(name, str))
    return Embedded(
        family=found["family"], config=found["config"], made=found["made"], filled=filled
    )


def keep_if_unchanged(
    own: Embedded | None,
    family: str,
    native: Mapping[str, Any],
    render: Callable[[Mapping[str, Any]], Mapping[str, Any]],
) -> Embedded | None:
    """Returns ``own`` where the file still says what we made of it: ``native`` is
    ``render(own.config)``."""
    if own is None or own.family != family:
        return None
    try:
        return (
            own
            if canonical_json(dict(render(own.config))) == canonical_json(dict(native))
            else None
        )
    except (UserError, KeyError, TypeError, ValueError):
        return None
