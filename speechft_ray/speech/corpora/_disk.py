"""Finds and reads what lies below the root of a corpus: listings, paths, lists in text files."""

from __future__ import annotations

import codecs
import os
import shlex
import unicodedata
from collections import deque
from contextlib import suppress
from pathlib import Path, PurePosixPath

from speechft_ray.core.errors import UserError
from speechft_ray.core.files import describe_lfs_pointer
from speechft_ray.speech.corpora.base import FileState

_LITTER = frozenset(
    {"__macosx", "@eadir", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "icon\r"}
)
"""Files and folders of Finder, Explorer and network storage that are part of no corpus, in lower
case; so is every name that begins with a dot (``._a.wav`` of macOS, ``.DS_Store``, ...)."""


def is_litter(name: str) -> bool:
    """Whether a file or folder of that name was put there by an operating system."""
    return name.startswith(".") or name.lower() in _LITTER


def list_folder(folder: Path, ending: str = "") -> list[Path]:
    """Returns what a folder holds, sorted, without litter; only names with this ending."""
    return sorted(
        child
        for child in folder.iterdir()
        if child.name.endswith(ending) and not is_litter(child.name)
    )


def list_tree(folder: Path, ending: str) -> list[Path]:
    """Returns the files with this ending anywhere below a folder, sorted, without litter.

    Links to folders are followed, since parts of a corpus may lie on other disks; a folder to which
    several paths lead is listed once, by a path without links if there is one.
    """
    files: list[Path] = []
    visited: set[str] = set()
    starts = deque([folder])
    while starts:
        for place, folders, names in os.walk(starts.popleft()):
            real = os.path.realpath(place)
            if real in visited:
                folders.clear()
                continue
            visited.add(real)
            folders[:] = sorted(name for name in folders if not is_litter(name))
            inner = [Path(place, name) for name in folders]
            starts.extend(path for path in inner if path.is_symlink())
            files += [
                Path(place, name) for name in names if name.endswith(ending) and not is_litter(name)
            ]
    return sorted(files)


def join_below(root: Path, relative: str) -> Path:
    """Returns the place of a file that the listing of a corpus has.

    Links are followed wherever they lead: they are the user's layout. Raises ``UserError`` for a
    path that is absolute or has ``..``, which a list of a corpus may not hold.
    """
    path = PurePosixPath(relative)
    if path.is_absolute() or ".." in path.parts or "\0" in relative:
        raise UserError(
            f"`{relative}` leaves the folder {root}: paths of a list must be relative, without "
            "`..`, and stay inside it."
        )
    return root / relative


def describe_missing_file(root: Path, relative: str) -> str:
    """Returns the sentence on a file that is not there."""
    place = root
    for part in PurePosixPath(relative).parts[:-1]:
        place = place / part
        if place.is_symlink() and not place.exists():
            return (
                f"the file `{relative}` does not exist: {place} is a link to "
                f"{place.readlink()}, which is not there"
            )
        if place.is_file():
            return (
                f"the file `{relative}` does not exist, since {place} is a file and no folder (a "
                "link that was copied as text?): put the folder there, or a link to it"
            )
    place = root / relative
    if place.is_symlink():
        return f"`{relative}` is a link to {place.readlink()}, which does not exist"
    return f"the file `{relative}` does not exist"


def suggest_link(root: Path) -> str:
    """Returns a sentence on the folder beside ``root`` whose name differs in case only, as archives
    unpack to it; empty where there is none."""
    siblings: list[Path] = []
    with suppress(OSError):
        siblings = sorted(path for path in root.parent.iterdir() if path.is_dir())
    for path in siblings:
        if path.name.lower() == root.name.lower():
            command = shlex.join(["ln", "-s", path.name, str(root)])
            return f" The folder {path.name} beside it differs in case only: `{command}`."
    return ""


def read_state(path: Path) -> FileState | None:
    """Returns the state of a file, ``None`` for one that is not there."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # also a path that no file can have
        return None
    return FileState(status.st_size, status.st_mtime_ns)


class NameFinder:
    """Finds files whose names are spelled in another normal form of Unicode than on disk.

    macOS and archives that were packed there write ``u`` and a combining mark where a table has
    the one character ``ü``.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._names: dict[Path, dict[str, str]] = {}

    def find(self, relative: str) -> str | None:
        """Returns the path as it is spelled on disk; ``None`` where no file has it in any form."""
        place = self._root
        for part in PurePosixPath(relative).parts:
            if (place / part).exists():
                place = place / part
                continue
            if place not in self._names:
                names = [child.name for child in place.iterdir()] if place.is_dir() else []
                self._names[place] = {unicodedata.normalize("NFC", name): name for name in names}
            spelled = self._names[place].get(unicodedata.normalize("NFC", part))
            if spelled is None:
                return None
            place = place / spelled
        return place.relative_to(self._root).as_posix()


def read_text(path: Path) -> str:
    """Returns the text of a list or table, UTF-8 with or without a byte order mark, with ``\\n`` at
    the ends of lines.

    Raises ``UserError`` for a file that is missing, a Git LFS pointer, or not UTF-8 text.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    if pointer := describe_lfs_pointer(path):
        raise UserError(f"{path} {pointer}.")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{path} is UTF-16 text (`Unicode text` of Excel): save it as UTF-8.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} cannot be read as UTF-8 text: {error}.") from error
    return text.replace("\r\n", "\n") if "\n" in text else text.replace("\r", "\n")
