"""Prints what a loader left out or filled in."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console


def print_notes(name: str, notes: Iterable[str]) -> None:
    """Prints sentences about the encoder ``name`` on the standard error stream."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    for note in notes:
        console.print(f"note: {name}: {note}", markup=False)
