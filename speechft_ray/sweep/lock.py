"""The lock of a sweep: one driver at a time, since a second one would compute everything twice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from speechft_ray.core.errors import Interrupted, UserError
from speechft_ray.core.lease import (
    RENEW_SECONDS,
    STALE_SECONDS,
    Holder,
    LeasePlace,
    LeaseTakenError,
    is_renewed,
    is_running,
)
from speechft_ray.core.store import Store


@contextmanager
def hold_lock(
    store: Store, sweep: str, stop: threading.Event, note: Callable[[str], object]
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
        stop.set()  # first: the storage may still not answer
        holder: object = None
        with suppress(OSError, UserError):
            holder = place.read()
        note(
            f"{holder or 'another driver'} has taken over this sweep, since this driver did not "
            "renew its lock: it was suspended, or the storage did not answer. This one stops."
        )

    place = store.lease(sweep)
    try:
        lease = place.take(give_up, say_doubt, wait)
    except LeaseTakenError as error:
        raise UserError(
            f"this sweep already runs on {error.holder}: wait for it, stop it, or look at it with "
            f"`speechft status`. (Lock {place}.)"
        ) from None
    except OSError as error:
        raise UserError(
            f"the lock of this sweep in {place} cannot be read or written ({error.strerror}): see "
            "that the storage folder is there and can be written, and run the command again."
        ) from None
    try:
        yield
    finally:
        lease.release()


def describe_driver(store: Store, sweep: str) -> str | None:
    """Returns the driver that runs a sweep, as ``host, process N``, or ``None``.

    Of a driver that cannot be looked up from here, a renewal is waited for. Without one, the
    sentence says so.
    """
    place = store.lease(sweep)
    try:
        return _describe_holder(place)
    except OSError as error:
        return f"perhaps: its lock in {place} cannot be read ({error.strerror})"


def list_drivers(store: Store, other_than: str | None = None) -> dict[str, str]:
    """Returns the drivers that run now in a storage, by the fingerprint of their sweep, without
    that of ``other_than``. Of one that cannot be looked up from here, a renewal of its lock is
    waited for."""
    sweeps = (sweep for sweep in sorted(store.list_leases()) if sweep != other_than)
    drivers = {sweep: describe_driver(store, sweep) for sweep in sweeps}
    return {sweep: driver for sweep, driver in drivers.items() if driver}


def read_lock(store: Store, sweep: str) -> Holder | None:
    """Returns who held the lock of a sweep last; ``None`` if nobody did, or it cannot be read."""
    try:
        return store.lease(sweep).read()
    except OSError:
        return None


def _describe_holder(place: LeasePlace) -> str | None:
    holder = place.read()
    if holder is None or holder.released:
        return None
    running = is_running(holder)
    if running is not None:
        return str(holder) if running else None
    seconds = 3 * RENEW_SECONDS
    if not is_renewed(place.read, holder, seconds):
        return (
            f"perhaps: {holder} has its lock and has not renewed it for {seconds:g} s. If it died, "
            f"`run` goes on {STALE_SECONDS:g} s after it is started"
        )
    after = place.read()
    return str(after) if after is not None and not after.released else None
