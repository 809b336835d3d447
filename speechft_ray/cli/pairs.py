"""Options given as ``NAME=VALUE``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from speechft_ray.core.errors import UserError


def given_pairs(pairs: Sequence[str], flag: str) -> dict[str, Any]:
    """Returns the values by name, read as YAML, as a search space has them. Raises ``UserError``
    naming the flag."""
    import yaml

    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"{flag} must be NAME=VALUE, but is `{pair}` instead.")
        try:
            found[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"{flag} {name} has a value that is not YAML: `{value}`.") from error
    return found
