"""Claims: which driver computes a unit now, among the sweeps that share one storage.

A claim is a file ``STORAGE/claims/STAGE-FINGERPRINT.N`` that is made in one step (``O_EXCL``) and
names the lock of its sweep. It counts as long as that lock is held, so nothing renews it. Taking a
dead claim over makes file N + 1; the highest number counts. A driver removes its own claims only,
so those of a killed one stay: else two drivers could each find a number free.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from speechft_ray.core.lease import STALE_SECONDS, Holder, is_running
from speechft_ray.core.records import Job
from speechft_ray.core.store import Store
from speechft_ray.sweep.lock import read_lock

LOOK_SECONDS = 3.0
"""Between two looks at the claims of others."""

_FOLDER = "claims"
_SECONDS = "merge"
"""Merges take seconds and are equal whoever makes them: a claim would cost as much."""


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
        holder = read_lock(store.root, sweep)
        self._content = json.dumps(
            {"sweep": sweep, "token": holder.token if holder else "", "holder": str(holder)}
        )
        self._root, self._folder = store.root, store.root / _FOLDER
        self._note, self._clock = note, clock
        self._files: dict[str, Path] = {}
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
        self._folder.mkdir(exist_ok=True)
        number = 1
        while True:
            path = self._path(job, number)
            try:
                file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                if self._path(job, number + 1).exists():
                    number += 1
                    continue
                lives = self._lives(path, job)
                if lives:
                    return False
                number = 1 if lives is None else number + 1
                continue
            with os.fdopen(file, "w", encoding="utf-8") as opened:
                opened.write(self._content)
            self._files[job.fingerprint] = path
            return True

    def release(self, key: str) -> None:
        """Gives the claim of a unit up, whether it is complete or not."""
        path = self._files.pop(key, None)
        if path is not None:
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def release_all(self) -> None:
        """Gives all claims up."""
        for key in list(self._files):
            self.release(key)

    def _path(self, job: Job, number: int) -> Path:
        return self._folder / f"{job.stage}-{job.fingerprint}.{number}"

    def _lives(self, path: Path, job: Job) -> bool | None:
        """Whether the driver that made a claim still holds the lock of its sweep; ``None`` where
        the claim was given up just now."""
        try:
            claim: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            sweep, token = str(claim["sweep"]), str(claim["token"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            return self._changes_still(str(path), "")  # it is being written
        holder = read_lock(self._root, sweep)
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
