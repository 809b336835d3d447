"""Errors that a user can correct. Every other exception is a bug and keeps its traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class UserError(Exception):
    """Bad input, in one sentence: what is wrong, where, what is allowed, how to go on.

    The command line prints the sentence alone and exits with code 2.
    """


class StorageDown(UserError):
    """The object store of a run fails although requests were repeated. What was complete is stored;
    the same command resumes, so that the command line exits with 75."""


class GpuMemoryError(UserError):
    """The memory of the GPU, or the share of it that a job has, is too small."""


class SpecError(UserError):
    """All mistakes of one input, each as ``(path, sentence)``.

    ``places`` has ``file:line:column`` for each mistake where the input is a file that has lines.
    """

    def __init__(
        self, where: str, mistakes: Sequence[tuple[str, str]], places: Sequence[str] = ()
    ) -> None:
        self.where = where
        self.mistakes = tuple(mistakes)
        self.places = tuple(places)
        count = len(self.mistakes)
        head = f"{where} has {count} mistake{'s' if count != 1 else ''}:"
        rows = [f"{printable(path)}: {text}" for path, text in self.mistakes]
        if places:
            rows = [f"{place}: {row}" for place, row in zip(places, rows, strict=True)]
        super().__init__("\n".join([head, *(f"  {row}" for row in rows)]))


class SweepError(SpecError):
    """Mistakes of a sweep whose axes are expanded: indices in paths count its entries, not those of
    its file. ``SpaceFile.name_lines`` turns them into those of the file."""


class Interrupted(Exception):
    """The run was stopped by a signal. What was complete is stored; the same command resumes."""


EXIT_RESUMABLE = 75
"""The exit code of a run that was stopped and can go on (EX_TEMPFAIL of sysexits.h)."""


class HeadLost(Interrupted):
    """The run stopped because the head of its Ray cluster is lost; the text says which."""

    def explain(self) -> str:
        """Returns the last line of the run."""
        return (
            f"speechft: stopped, because {self}. Everything finished is kept. Start the cluster "
            "again, and run the same command again to go on."
        )


class DiskFull(Interrupted):
    """The run stopped because nothing more can be stored; the text says where."""


def unknown_name(kind: str, name: str, allowed: Iterable[str]) -> str:
    """Returns the sentence for an unknown name, with the nearest match and the whole list."""
    names = sorted(allowed)
    return (
        f"unknown {kind} `{printable(name)}`.{did_you_mean(name, names)} "
        f"Allowed: {', '.join(names) or 'none'}."
    )


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """Returns `` Did you mean `x`?`` with the nearest allowed name; empty where none is near."""
    near = nearest_name(name, allowed)
    return f" Did you mean `{near}`?" if near else ""


def nearest_name(name: str, allowed: Iterable[str]) -> str | None:
    """Returns the allowed name that is nearest to a misspelt one; case, ``-`` and ``_`` count
    little. ``None`` where no name is near."""
    names = sorted(allowed)
    plain = {_fold(item): item for item in names}
    near = difflib.get_close_matches(name, names, n=1)
    folded = difflib.get_close_matches(_fold(name), plain, n=1)
    return near[0] if near else plain[folded[0]] if folded else None


def _fold(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "").replace(" ", "")


def printable(text: str) -> str:
    """Returns a text with escapes for what would break a line or change a terminal."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )
