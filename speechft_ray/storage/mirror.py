"""Keeps files of this node in a bucket: unfinished work, and the small files of drivers."""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from speechft_ray.core.errors import UserError
from speechft_ray.storage.bucket import Bucket, Item

PUSH_SECONDS = 5.0
"""Shortest time between two looks at the files."""

PUSH_SHARE = 0.25
"""Largest share of the time spent on sending, so that large states are sent less often."""

REMOVED_SECONDS = 600.0
"""Age at which a record that the bucket lacks counts as removed there: a driver sends its own
within seconds, and ends after ``RETRY_SECONDS`` where it cannot."""

_log = logging.getLogger(__name__)

State = tuple[int, int]
"""Size and time of a file, in nanoseconds: it changed where these did."""


class Mirror:
    """Files below a folder and their copies below the same prefix of a bucket.

    Writers must replace files as a whole. Files whose names begin with a dot are left out. The
    folder is a cache: losing it, or a part of it, costs the bucket nothing.
    """

    def __init__(
        self, bucket: Bucket, root: Path, folders: Sequence[str], *, removes: bool = False
    ) -> None:
        """``folders``: paths below ``root``, and prefixes of the bucket. ``removes``: whether files
        that are gone here are removed there (see ``push``)."""
        self._bucket, self._root, self._folders = bucket, root, folders
        self._removes = removes
        self._sent: dict[str, State] = {}
        """Files of which the bucket has this state."""
        self._own: set[str] = set()
        """Those of them that were sent from here."""
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def pull(self) -> None:
        """Copies what the bucket has to this node; files that only this node has stay."""
        for folder in self._folders:
            for item in self._bucket.list(f"{folder}/"):
                path = self._root / item.key
                if not path.resolve().is_relative_to(self._root.resolve()):
                    continue
                if not _is_same(path, item):
                    download_file(self._bucket, item, path)
                with suppress(OSError):
                    self._sent[item.key] = _read_state(path)

    def drop_removed(self) -> None:
        """Removes files of this node that the bucket no longer has: another node removed them.
        Younger ones stay, which a driver of this node may be about to send."""
        limit = time.time() - REMOVED_SECONDS
        for path in list(self._list_files()):
            key = path.relative_to(self._root).as_posix()
            with suppress(OSError):
                is_old = path.stat().st_mtime < limit
                if key not in self._sent and is_old and self._bucket.find(key) is None:
                    path.unlink()

    def push(self) -> bool:
        """Sends new and changed files; returns whether every folder could be read. Raises
        ``UserError`` and ``OSError``.

        Where the mirror ``removes``, those that are gone here are then removed from the bucket, as
        a job removes an old state once it has saved another. So one that was sent from here must
        still be here, and every folder must be readable: else the cache may have been removed.
        """
        there: set[str] = set()
        errors: list[OSError] = []
        for path in self._list_files(errors.append):
            key = path.relative_to(self._root).as_posix()
            with suppress(FileNotFoundError):  # replaced or removed meanwhile
                state = _read_state(path)
                there.add(key)
                if self._sent.get(key) != state:
                    self._bucket.upload(key, path)
                    self._sent[key] = state
                    self._own.add(key)
        if self._removes and not errors and self._own & there:
            gone = self._sent.keys() - there
            self._bucket.remove(gone)
            self._own -= gone
            for key in gone:
                del self._sent[key]
        for error in errors:
            if not isinstance(error, FileNotFoundError):
                _log.warning("files of this node were not sent: %s", error)
        return not errors

    def start(self) -> None:
        """Sends in a thread from now on."""
        self._thread = threading.Thread(target=self._run, name="speechft-mirror", daemon=True)
        self._thread.start()

    def stop(self, *, push: bool = True) -> bool:
        """Ends the thread, after everything was sent where ``push``; returns whether it was."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        return push and self._push_or_log()

    def _run(self) -> None:
        seconds = 0.0
        while not self._ended.wait(max(PUSH_SECONDS, seconds * (1 / PUSH_SHARE - 1))):
            began = time.monotonic()
            self._push_or_log()
            seconds = time.monotonic() - began

    def _push_or_log(self) -> bool:
        try:
            return self.push()
        except (UserError, OSError) as error:
            _log.warning("files of this node were not sent: %s", error)
            return False

    def _list_files(self, on_error: Callable[[OSError], object] | None = None) -> Iterator[Path]:
        """Yields the files; ``on_error`` gets the reason for each folder that cannot be read, which
        is passed over."""
        for folder in self._folders:
            for place, inner, names in os.walk(self._root / folder, onerror=on_error):
                inner[:] = [name for name in inner if not name.startswith(".")]
                yield from (Path(place) / name for name in names if not name.startswith("."))


def download_file(bucket: Bucket, item: Item, path: Path) -> str | None:
    """Writes an object to a file, which appears as a whole and has the object's time; returns its
    sha256, ``None`` where the object is gone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        read = bucket.download(item.key, temporary)
        if read is None:
            return None
        os.utime(temporary, (item.modified, item.modified))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return read[0]


def _is_same(path: Path, item: Item) -> bool:
    try:
        state = path.stat()
    except OSError:
        return False
    return state.st_size == item.size and abs(state.st_mtime - item.modified) < 1e-3


def _read_state(path: Path) -> State:
    state = path.stat()
    return state.st_size, state.st_mtime_ns
