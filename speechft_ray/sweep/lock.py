"""One driver per sweep: a second one would compute everything twice."""

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
"""A lock of another host that was not renewed for so long belongs to a driver that is gone."""


@contextmanager
def driver_lock(root: Path, sweep: str) -> Iterator[Path]:
    """Holds the lock of one sweep while the body runs; yields its file, whose mtime the driver
    renews with ``touch``.

    Raises ``UserError`` naming host and process when another driver holds it. The lock of a dead
    process is taken over.
    """
    path = root / "locks" / f"{sweep}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    _take(path)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def lock_holder(root: Path, sweep: str) -> str | None:
    """Returns who runs this sweep now, as ``host, process N``, or ``None``."""
    return _alive(root / "locks" / f"{sweep}.json")


def _take(path: Path) -> None:
    text = json.dumps({"host": socket.gethostname(), "process": os.getpid()})
    for _ in range(2):
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
                return
        except FileExistsError:
            other = _alive(path)
            if other:
                raise UserError(
                    f"this sweep already runs on {other}: wait for it, stop it, or look at it with `speechft status`. "
                    f"(Lock file {path}.)"
                ) from None
            path.unlink(missing_ok=True)
    raise UserError(
        f"the lock file {path} is being fought over by two drivers: run one of them again."
    )


def _alive(path: Path) -> str | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        age_seconds = time.time() - path.stat().st_mtime
        host, process = str(found["host"]), int(found["process"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    alive = _process_lives(process) if host == socket.gethostname() else age_seconds < STALE_SECONDS
    return f"{host}, process {process}" if alive else None


def _process_lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
