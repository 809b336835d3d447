"""Files that readers see as a whole or not at all."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from speechft_ray.core.errors import UserError

LFS_POINTER_BYTES = 1024
"""A Git LFS pointer is shorter than this (specification of Git LFS, ``docs/spec.md``)."""
_LFS_POINTER = (
    b"version https://git-lfs.github.com/spec/",
    b"version https://hawser.github.com/spec/",
)
"""How a pointer begins, now and in the first releases (same document)."""


@contextmanager
def atomic_write(path: Path, name_of: Callable[[Path], str] | None = None) -> Iterator[Path]:
    """Yields an empty temporary file beside ``path`` to be filled, and renames it to ``path``.

    ``name_of`` returns the final name where that depends on the content, as a checksum does. The
    content and the rename are synced to disk. Permissions are those of a new file of this process.
    Nothing is left when the body raises; ``OSError`` is passed on.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}-{path.name}")  # writers look at suffixes
    try:
        with temporary.open("xb") as file:
            mode = os.fstat(file.fileno()).st_mode
        yield temporary
        temporary.chmod(mode)  # a writer may have put a file of its own in this place
        _sync(temporary)
        temporary.replace(path.with_name(name_of(temporary)) if name_of else path)
    finally:
        with suppress(OSError):
            temporary.unlink()
    sync_folder(path.parent)


def name_new_file(temporary: Path, path: Path) -> bool:
    """Gives a complete file its final name, unless that exists; ``temporary`` may remain.

    Returns whether ``path`` is that file now. Raises ``OSError``.
    """
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links, such as exFAT and some network mounts
        if path.exists():
            return False
        temporary.rename(path)
    return True


def write_json(path: Path, value: Any) -> None:
    """Writes JSON with sorted keys by ``atomic_write``. Raises ``ValueError`` for NaN and
    ``TypeError`` for what JSON lacks."""
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, sort_keys=True, allow_nan=False)


def describe_lfs_pointer(path: Path) -> str | None:
    """Returns what follows the name of a file that holds a Git LFS pointer instead of its content;
    ``None`` for every other file, also for one that is missing or cannot be read."""
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            head = file.read(LFS_POINTER_BYTES)
    except OSError:
        return None
    if len(head) == LFS_POINTER_BYTES or not head.startswith(_LFS_POINTER):
        return None
    return (
        "is a Git LFS pointer and not the file itself: run `git lfs pull` in its repository, or "
        "download the file"
    )


def check_content(path: Path) -> None:
    """Raises ``UserError`` for a file that is empty, and for a pointer of Git LFS."""
    pointer = describe_lfs_pointer(path)
    if pointer:
        raise UserError(f"{path} {pointer}.")
    if path.is_file() and path.stat().st_size == 0:
        raise UserError(f"{path} is empty (0 bytes). Copy it again from where it came.")


def sync_folder(path: Path) -> None:
    """Makes a rename inside the folder durable."""
    with suppress(OSError):  # some network file systems cannot; the rename is still atomic
        _sync(path)


def find_cache_root() -> Path:
    """Returns the folder of this node for what can be had again: ``$SPEECHFT_CACHE``, else
    ``$XDG_CACHE_HOME/speechft_ray``, else ``~/.cache/speechft_ray``."""
    own, shared = os.environ.get("SPEECHFT_CACHE"), os.environ.get("XDG_CACHE_HOME")
    root = (
        Path(own) if own else (Path(shared) if shared else Path.home() / ".cache") / "speechft_ray"
    )
    return root.expanduser().absolute()


def refresh(folder: Path) -> None:
    """Has a network file system look at a folder again, if what it remembers of it is old.

    Opening a folder does that (nfs(5), "close-to-open cache consistency"); looking for a file that
    was missing before does not.
    """
    with suppress(OSError):
        os.close(os.open(folder, os.O_RDONLY))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def try_writing(folder: Path) -> None:
    """Writes a file into a folder and removes it. Raises ``OSError`` where that cannot be done."""
    probe = folder / f".probe-{uuid.uuid4().hex}"
    probe.write_text("")
    probe.unlink()
