"""Claims: which driver computes a unit now, among the sweeps that share one storage.

A claim is a file ``STORAGE/claims/STAGE-FINGERPRINT.N`` that is made in one step (``O_EXCL``, in a
bucket a conditional write) and names the lock of its sweep. It counts as long as that lock is held,
so nothing renews it. Taking a dead claim over makes file N + 1; the highest number counts. A driver
removes its own claims only, so those of a killed one stay: else two drivers could each find a
number free. ``gc`` removes them while no driver runs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from speechft_ray.core.lease import STALE_SECONDS, Holder, is_running
from speechft_ray.core.records import Job
from speechft_ray.core.store import Store
from speechft_ray.sweep.lock import read_lock

LOOK_SECONDS = 3.0
"""Between two looks at the claims of others."""

FOLDER = "claims"
_SECONDS = "merge"
"""Merges take seconds and are equal whoever makes them: a claim would cost as much."""


def name_claim(job: Job, number: int) -> str:
    """Returns the file of a claim in the store."""
    return f"{FOLDER}/{job.stage}-{job.fingerprint}.{number}"


class UnitClaims:
    """The claims of one driver. ``note`` prints a line, once for each sweep that is waited for."""

    def __init__(
        self,
        store: Store,
        sweep: str,
        note: Callable[[str], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``sweep``: its fingerprint; this process holds its lock."""
        holder = read_lock(store, sweep)
        self._content = json.dumps(
            {"sweep": sweep, "token": holder.token if holder else "", "holder": str(holder)}
        )
        self._store = store
        self._note, self._clock = note, clock
        self._files: dict[str, str] = {}
        """The claims of this driver by fingerprint."""
        self._sweeps: set[str] = set()
        """Sweeps that ``note`` has named."""
        self._changes: dict[str, tuple[object, float]] = {}
        """The last state of locks and claims that say nothing of their process, and when it was
        seen first."""

    def take(self, job: Job) -> bool:
        """Whether this driver may compute a unit: it has its claim, or has just got it.

        Look into the store again afterwards: another driver may have finished it before. Where no
        claim can be written, the unit is computed without.
        """
        if job.stage == _SECONDS or job.fingerprint in self._files:
            return True
        try:
            return self._take(job)
        except OSError:
            return True

    def _take(self, job: Job) -> bool:
        number = 1
        while True:
            name = name_claim(job, number)
            if self._store.create_file(name, self._content):
                self._files[job.fingerprint] = name
                return True
            if self._store.read_file(name_claim(job, number + 1)) is not None:
                number += 1
                continue
            lives = self._lives(name, job)
            if lives:
                return False
            number = 1 if lives is None else number + 1

    def release(self, key: str) -> None:
        """Gives the claim of a unit up, whether it is complete or not."""
        name = self._files.pop(key, None)
        if name is not None:
            with suppress(OSError):
                self._store.remove_file(name)

    def release_all(self) -> None:
        """Gives all claims up."""
        for key in list(self._files):
            self.release(key)

    def _lives(self, name: str, job: Job) -> bool | None:
        """Whether the driver that made a claim still holds the lock of its sweep; ``None`` where
        the claim was given up just now."""
        try:
            content = self._store.read_file(name)
            if content is None:
                return None
            claim: dict[str, Any] = json.loads(content)
            sweep, token = str(claim["sweep"]), str(claim["token"])
        except (OSError, ValueError, KeyError, TypeError):
            return self._changes_still(name, "")  # it is being written
        holder = read_lock(self._store, sweep)
        if holder is None or holder.released or holder.token != token:
            return False
        running = is_running(holder)
        if running is None:
            running = self._changes_still(sweep, holder.renewals)
        if running and sweep not in self._sweeps:
            self._sweeps.add(sweep)
            self._note(self._describe(job, holder))
        return running

    def _changes_still(self, name: str, state: object) -> bool:
        """Whether a state was seen to change within ``STALE_SECONDS`` of this process's clock."""
        now = self._clock()
        last, since = self._changes.get(name, (None, now))
        if last != state:
            last, since = state, now
        self._changes[name] = (last, since)
        return now - since < STALE_SECONDS

    def _describe(self, job: Job, holder: Holder) -> str:
        return (
            f"{job.label} is computed by another sweep ({holder}): this one waits for what both "
            "need, and computes the rest meanwhile."
        )
