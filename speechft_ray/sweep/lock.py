"""The lock of a sweep: one driver at a time, since a second one would compute everything twice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from speechft_ray.core.errors import Interrupted, UserError
from speechft_ray.core.lease import (
    RENEW_SECONDS,
    STALE_SECONDS,
    Holder,
    LeaseTakenError,
    is_renewed,
    is_running,
    read_holder,
    take_lease,
)

_LOCKS = "locks"


@contextmanager
def hold_lock(
    root: Path, sweep: str, stop: threading.Event, note: Callable[[str], object]
) -> Iterator[None]:
    """Holds the lock of a sweep and renews it; sets ``stop`` if another driver takes it over.

    The lock of a driver that died is taken over: at once where its process can be looked up, else
    after ``STALE_SECONDS`` without a renewal. ``note`` prints a line. Raises ``UserError`` with
    host and process when another driver holds it, and ``Interrupted`` when ``stop`` is set while
    the other is watched.
    """

    def wait(seconds: float) -> None:
        if stop.wait(seconds):
            raise Interrupted

    def say_doubt(holder: Holder) -> None:
        note(
            f"{holder} has the lock of this sweep and cannot be looked up from here: waiting until "
            f"it renews the lock, or for {STALE_SECONDS:g} s, after which it is taken for dead."
        )

    def give_up() -> None:
        note(
            f"{read_holder(folder)} has taken over this sweep, since this driver did not renew its "
            "lock: it was suspended, or the storage did not answer. This one stops."
        )
        stop.set()

    folder = _folder(root, sweep)
    try:
        lease = take_lease(folder, give_up, say_doubt, wait)
    except LeaseTakenError as error:
        raise UserError(
            f"this sweep already runs on {error.holder}: wait for it, stop it, or look at it with "
            f"`speechft status`. (Lock {folder}.)"
        ) from None
    except OSError as error:
        raise UserError(
            f"the lock of this sweep in {folder} cannot be read or written ({error.strerror}): see "
            "that the storage folder is there and can be written, and run the command again."
        ) from None
    try:
        yield
    finally:
        lease.release()


def describe_driver(root: Path, sweep: str) -> str | None:
    """Returns the driver that runs a sweep, as ``host, process N``, or ``None``.

    Of a driver that cannot be looked up from here, a renewal is waited for. Without one, the
    sentence says so.
    """
    folder = _folder(root, sweep)
    try:
        return _describe_holder(folder)
    except OSError as error:
        return f"perhaps: its lock in {folder} cannot be read ({error.strerror})"


def read_lock(root: Path, sweep: str) -> Holder | None:
    """Returns who held the lock of a sweep last; ``None`` if nobody did, or it cannot be read."""
    try:
        return read_holder(_folder(root, sweep))
    except OSError:
        return None


def list_locks(root: Path) -> list[str]:
    """Returns the fingerprints of the sweeps that were ever locked in a storage."""
    return sorted(path.name for path in (root / _LOCKS).glob("[!.]*") if path.is_dir())


def _describe_holder(folder: Path) -> str | None:
    holder = read_holder(folder)
    if holder is None or holder.released:
        return None
    running = is_running(holder)
    if running is not None:
        return str(holder) if running else None
    seconds = 3 * RENEW_SECONDS
    if not is_renewed(folder, holder, seconds):
        return (
            f"perhaps: {holder} has its lock and has not renewed it for {seconds:g} s. If it died, "
            f"`run` goes on {STALE_SECONDS:g} s after it is started"
        )
    after = read_holder(folder)
    return str(after) if after is not None and not after.released else None


def _folder(root: Path, sweep: str) -> Path:
    return root / _LOCKS / sweep
