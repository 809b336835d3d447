"""Reads a search space file. It is YAML; nothing in it is evaluated as code."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from speechft_ray.core.errors import UserError
from speechft_ray.core.space import old_field_names, parse_space
from speechft_ray.core.specs import SweepSpec


class _NumberLoader(yaml.SafeLoader):
    """SafeLoader that reads ``1e-4`` as a number, as YAML 1.2 does."""


_NumberLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)$"),
    list("-+0123456789."),
)


def load_yaml(text: str) -> Any:
    """Returns the plain data of a YAML text. Raises ``yaml.YAMLError``."""
    return yaml.load(text, Loader=_NumberLoader)


def read_space(path: Path, note: Callable[[str], None] | None = None) -> SweepSpec:
    """Reads a search space file. ``note`` gets a sentence for each field with an old name.

    Raises ``UserError`` (unreadable) or ``SpecError`` (every mistake with its path).
    """
    try:
        raw = load_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"there is no search space `{path}`: give a YAML file, for example "
            "search_spaces/alpha.yaml."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the search space `{path}` cannot be read ({error}): give a UTF-8 YAML file."
        ) from None
    except yaml.YAMLError as error:
        raise UserError(
            f"the search space `{path}` is not YAML: {' '.join(str(error).split())}"
        ) from None
    spec = parse_space(raw, where=str(path))
    if note is not None:
        for sentence in old_field_names(raw):
            note(f"{path}: {sentence}")
    return spec
