"""The lock of a sweep: one driver at a time, since a second one would compute everything twice."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from speechft_ray.core.errors import UserError

STALE_SECONDS = 300.0
"""A lock of another host that was not renewed for so long belongs to a driver that has died."""


@contextmanager
def driver_lock(root: Path, sweep: str) -> Iterator[Path]:
    """Holds the lock of a sweep; yields its file, whose mtime the driver renews with ``touch``.

    Raises ``UserError`` naming host and process when another driver holds it. The lock of a dead
    process is taken over.
    """
    path = root / "locks" / f"{sweep}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    _acquire(path)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def lock_holder(root: Path, sweep: str) -> str | None:
    """Returns the driver that runs a sweep, as ``host, process N``, or ``None``."""
    return _read_live_driver(root / "locks" / f"{sweep}.json")


def _acquire(path: Path) -> None:
    text = json.dumps({"host": socket.gethostname(), "process": os.getpid()})
    for _ in range(2):
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
                return
        except FileExistsError:
            other = _read_live_driver(path)
            if other:
                raise UserError(
                    f"this sweep already runs on {other}: wait for it, stop it, or look at it with "
                    f"`speechft status`. (Lock file {path}.)"
                ) from None
            path.unlink(missing_ok=True)
    raise UserError(f"two drivers try to hold the lock file {path}: run one of them again.")


def _read_live_driver(path: Path) -> str | None:
    """Returns the driver in a lock file, or ``None`` where it has died or the file is damaged."""
    try:
        driver = json.loads(path.read_text(encoding="utf-8"))
        age_seconds = time.time() - path.stat().st_mtime
        host, process = str(driver["host"]), int(driver["process"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    is_local = host == socket.gethostname()
    is_alive = _is_running(process) if is_local else age_seconds < STALE_SECONDS
    return f"{host}, process {process}" if is_alive else None


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
