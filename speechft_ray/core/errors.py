"""Errors that a user can correct. Every other exception is a bug and keeps its traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class UserError(Exception):
    """Bad input, in one sentence: what is wrong, where, what is allowed, how to go on.

    The command line prints the sentence alone and exits with code 2.
    """


class SpecError(UserError):
    """All mistakes of one input, each as ``(path, sentence)``."""

    def __init__(self, where: str, mistakes: Sequence[tuple[str, str]]) -> None:
        self.where = where
        self.mistakes = tuple(mistakes)
        count = len(self.mistakes)
        head = f"{where} has {count} mistake{'s' if count != 1 else ''}:"
        super().__init__("\n".join([head, *(f"  {path}: {text}" for path, text in self.mistakes)]))


class Interrupted(Exception):
    """The run was stopped by a signal. What was complete is stored; the same command resumes."""


def unknown_name(kind: str, name: str, allowed: Iterable[str]) -> str:
    """Returns the sentence for an unknown name, with the nearest match and the whole list."""
    names = sorted(allowed)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean `{near[0]}`?" if near else ""
    return f"unknown {kind} `{name}`.{hint} Allowed: {', '.join(names) or 'none'}."
