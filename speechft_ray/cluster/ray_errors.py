"""Makes sentences of Ray's errors, which are long and have their cause at the end."""

from __future__ import annotations

import re
from typing import Any

from ray._private import worker

MOST_CHARACTERS = 300
"""What is shown of a text of Ray."""

_IMPORT_ERROR = re.compile(r"\b(?:ModuleNotFoundError|ImportError): [^\n]+")


_LOSS = re.compile(
    r"worker died or was killed|failed due to oom|running low on memory|node .* died"
)


def hush_losses() -> None:
    """Keeps what Ray prints about lost workers out of the terminal: up to a page for each, while
    outcomes have the cause. Other messages stay, such as those on resources that no node has."""
    if worker.print_to_stdstream is _print:
        worker.print_to_stdstream = _print_others


_print = worker.print_to_stdstream


def _print_others(data: dict[str, Any], *arguments: Any, **options: Any) -> None:
    if not _LOSS.search("\n".join(data["lines"])):
        _print(data, *arguments, **options)


def shorten(text: str) -> str:
    """Returns the end of a text on one line, at most ``MOST_CHARACTERS`` of it."""
    line = " ".join(text.split())
    return line if len(line) <= MOST_CHARACTERS else f"... {line[-MOST_CHARACTERS:]}"


def explain_import_error(text: str) -> str | None:
    """Returns a sentence where an error of Ray comes from a worker that could not import something,
    else ``None``."""
    errors = _IMPORT_ERROR.findall(text)
    if not errors:
        return None
    return (
        f"a worker could not import what it needs ({shorten(errors[-1])}): speechft_ray must be "
        "installed on every node, in the same version and with the same Python as here, and `ray "
        "start` be called from that environment."
    )
