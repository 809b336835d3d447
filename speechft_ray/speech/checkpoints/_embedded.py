"""Our own data in the formats of other tools, under a key that their loaders ignore.

Those formats have no place for the provenance of an encoder, and fairseq's has none for every key
of a configuration, so the ``.pt`` files that we write carry both. Where the rest of a file was
edited since, the file is right and our data is ignored.
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
    """Our data in a file. ``zeros``: parameters that are zeros because a loader demands them."""

    family: str
    config: Mapping[str, Any]
    provenance: Mapping[str, Any]
    zeros: tuple[str, ...] = ()


def embed(
    weights: EncoderWeights, provenance: Mapping[str, Any], zeros: Sequence[str] = ()
) -> dict[str, Any]:
    """Returns the plain data to store under ``KEY``. Raises ``TypeError`` or ``ValueError`` for
    values that JSON does not have."""
    data = {
        "format": FORMAT,
        "family": weights.family,
        "config": dict(weights.config),
        "made": dict(provenance),
        "filled": list(zeros),
    }
    canonical_json(data)
    return deepcopy(data)  # a part shared with the rest of the file would change with it


def read_embedded(data: Any, where: str) -> Embedded | None:
    """Returns what ``embed`` stored, or None where there is nothing that this version reads."""
    if data is None:
        return None
    try:
        fields = to_plain_data(data, where)
    except UserError:
        return None
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        return None
    kinds = {"family": str, "config": dict, "made": dict, "filled": list}
    if not all(isinstance(fields.get(key), kind) for key, kind in kinds.items()):
        return None
    zeros = tuple(name for name in fields["filled"] if isinstance(name, str))
    return Embedded(
        family=fields["family"], config=fields["config"], provenance=fields["made"], zeros=zeros
    )


def keep_if_unchanged(
    own: Embedded | None,
    family: str,
    native: Mapping[str, Any],
    render: Callable[[Mapping[str, Any]], Mapping[str, Any]],
) -> Embedded | None:
    """Returns ``own`` where the rest of the file still agrees with it: ``native``, the
    configuration in the file's own format, is ``render(own.config)``."""
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
