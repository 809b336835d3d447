"""Leases: who works on something now, on a storage that many hosts share.

In a folder (``FolderLease``), a lease is a folder ``<n>`` with one file that says who holds it,
renamed into place as a whole, so that nobody reads half of it. Its holder renews the file while it
lives. Whoever takes a lease over, or takes one that was released, makes folder ``<n + 1>``. The
highest number counts and is never removed, so that two processes which judge an old lease at
different moments cannot both hold it. Object stores have conditional writes for the same purpose
(``storage.lease``).
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol

from speechft_ray.core.files import write_json
from speechft_ray.core.processes import find_start

RENEW_SECONDS = 5.0
"""Seconds between two renewals."""

STALE_SECONDS = 120.0
"""A holder that cannot be looked up is dead when it renews nothing for so long, by the clock of the
process that watches: clocks of hosts differ. Clients of NFS show old content for up to 60 s
(nfs(5), ``acdirmax``)."""

_FILE = "lease.json"
_READS = 5
"""How often an unreadable lease is read before that is an error."""


class Holder(NamedTuple):
    """A process, and the state of its lease."""

    host: str
    boot: str
    """The kernel's id of this boot; empty where there is none."""
    space: str
    """The namespace in which ``process`` is a number; containers have their own."""
    process: int
    started: str
    """When the process started, in ticks since the boot; empty where unknown."""
    token: str
    """Drawn for each lease."""
    renewals: int = 0
    released: bool = False

    def __str__(self) -> str:
        return f"{self.host}, process {self.process}"


class LeaseTakenError(Exception):
    """Another process holds the lease."""

    def __init__(self, holder: Holder) -> None:
        super().__init__(str(holder))
        self.holder = holder


def describe_this_process() -> Holder:
    """Returns this process as the holder of a new lease."""
    process = os.getpid()
    return Holder(
        host=socket.gethostname(),
        boot=_read("/proc/sys/kernel/random/boot_id"),
        space=_read_link("/proc/self/ns/pid"),
        process=process,
        started=find_start(process) or "",
        token=uuid.uuid4().hex,
    )


def is_running(holder: Holder) -> bool | None:
    """Whether the process of a lease runs; ``None`` where that cannot be seen from here.

    A number alone says nothing: after the restart of a container it is that of another process.
    """
    here = describe_this_process()
    if not (here.started and holder.started):
        return None
    if (here.host, here.boot, here.space) != (holder.host, holder.boot, holder.space):
        return None
    return find_start(holder.process) == holder.started


class LeasePlace(Protocol):
    """Where a lease is kept."""

    def read(self) -> Holder | None:
        """Returns who held the lease last, also if it has released it since; ``None`` if nobody
        did. Raises ``OSError``."""
        ...

    def take(
        self,
        on_loss: Callable[[], object],
        on_doubt: Callable[[Holder], object],
        wait: Callable[[float], object],
    ) -> HeldLease:
        """Returns the lease, as ``take_lease`` does."""
        ...


class HeldLease(Protocol):
    """A lease that this process holds and renews."""

    def release(self) -> None:
        """Ends the lease, unless another process has taken it over meanwhile."""
        ...


class FolderLease:
    """A lease that is kept in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __str__(self) -> str:
        return str(self._folder)

    def read(self) -> Holder | None:
        """Returns ``read_holder`` of the folder."""
        return read_holder(self._folder)

    def take(
        self,
        on_loss: Callable[[], object],
        on_doubt: Callable[[Holder], object],
        wait: Callable[[float], object],
    ) -> HeldLease:
        """Returns ``take_lease`` of the folder."""
        return take_lease(self._folder, on_loss, on_doubt, wait)


def read_holder(folder: Path) -> Holder | None:
    """Returns who held the lease last, also if it has released it since; ``None`` if nobody did."""
    try:
        number = _last_number(folder)
        return _read_holder(folder / str(number)) if number else None
    except FileNotFoundError:
        return None


def is_renewed(
    read: Callable[[], Holder | None],
    holder: Holder,
    seconds: float,
    wait: Callable[[float], object] = time.sleep,
) -> bool:
    """Watches a lease for so many seconds of this process's clock.

    Returns whether its holder renewed or released it, or another took it, meanwhile.
    """
    ends = time.monotonic() + seconds
    while True:
        if read() != holder:
            return True
        if time.monotonic() >= ends:
            return False
        wait(min(1.0, RENEW_SECONDS / 2))


class Lease:
    """A lease that this process holds, renewed in a thread until ``release``."""

    def __init__(self, folder: Path, holder: Holder, on_loss: Callable[[], object]) -> None:
        self._folder, self._holder, self._on_loss = folder, holder, on_loss
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="speechft-lease", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Ends the lease, unless another process has taken it over meanwhile."""
        self._ended.set()
        self._thread.join()
        if not self._is_lost():
            with suppress(OSError):
                self._write(self._holder._replace(released=True))

    def _renew(self) -> None:
        renewals = 0
        while not self._ended.wait(RENEW_SECONDS):
            if self._is_lost():
                self._on_loss()
                return
            renewals += 1
            with suppress(OSError):  # a storage that is away for a while
                self._write(self._holder._replace(renewals=renewals))

    def _is_lost(self) -> bool:
        with suppress(OSError):
            return _last_number(self._folder.parent) > int(self._folder.name)
        return False

    def _write(self, holder: Holder) -> None:
        write_json(self._folder / _FILE, holder._asdict())


def take_lease(
    folder: Path,
    on_loss: Callable[[], object],
    on_doubt: Callable[[Holder], object] = lambda holder: None,
    wait: Callable[[float], object] = time.sleep,
) -> Lease:
    """Returns the lease in a folder.

    A holder that cannot be looked up from here is watched, for ``STALE_SECONDS`` at most;
    ``on_doubt`` is called before. ``wait`` sleeps and may raise. ``on_loss`` is called, in another
    thread, when another process has taken the lease over while this one was suspended. Raises
    ``LeaseTakenError``, and ``OSError`` where the folder cannot be read or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    me = describe_this_process()
    while True:
        number = _last_number(folder)
        try:
            holder = _read_holder(folder / str(number)) if number else None
        except FileNotFoundError:
            if _last_number(folder) == number:
                raise
            continue  # another process has taken the lease over and removed this one meanwhile
        if holder is not None and not is_free(lambda: read_holder(folder), holder, on_doubt, wait):
            continue
        if _make(folder, number + 1, me):
            return Lease(folder / str(number + 1), me, on_loss)


def is_free(
    read: Callable[[], Holder | None],
    holder: Holder,
    on_doubt: Callable[[Holder], object],
    wait: Callable[[float], object],
) -> bool:
    """Whether a lease can be taken over from its holder; false where it must be read again.

    Raises ``LeaseTakenError`` where the holder lives.
    """
    if holder.released:
        return True
    running = is_running(holder)
    if running is None:
        on_doubt(holder)
        if is_renewed(read, holder, STALE_SECONDS, wait):
            after = read()
            if after is None or after.released or after.token != holder.token:
                return False
            running = True
    if running:
        raise LeaseTakenError(holder)
    return True


def _make(folder: Path, number: int, me: Holder) -> bool:
    """Makes lease ``number`` in one step; returns whether it is the one that counts."""
    temporary = folder / f".{me.token}"
    temporary.mkdir(exist_ok=True)
    try:
        write_json(temporary / _FILE, me._asdict())
        # A folder that has content is not replaced (rename(2)); NFS may answer with an error after
        # it has renamed, so that only the content says who has it.
        with suppress(OSError):
            temporary.rename(folder / str(number))
        if _last_number(folder) != number:
            return False
        holder = _read_holder(folder / str(number))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if holder is None or holder.token != me.token:
        return False
    for old in folder.iterdir():
        if old.name.isdigit() and int(old.name) < number:
            shutil.rmtree(old, ignore_errors=True)
    return True


def _last_number(folder: Path) -> int:
    return max((int(path.name) for path in folder.iterdir() if path.name.isdigit()), default=0)


def _read_holder(folder: Path) -> Holder | None:
    """Returns the holder in one folder; ``None`` where the file is damaged, which its writer cannot
    have done."""
    for attempt in range(_READS):
        try:
            content = json.loads((folder / _FILE).read_text(encoding="utf-8"))
            return Holder(**content)
        except OSError:  # NFS: the file was replaced while it was read
            if attempt == _READS - 1:
                raise
            time.sleep(0.1)
        except (ValueError, TypeError):
            return None
    return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _read_link(path: str) -> str:
    try:
        return str(Path(path).readlink())
    except OSError:
        return ""
