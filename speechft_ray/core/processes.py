"""Processes of this host, by number and start, since numbers are used again."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path


def find_start(process: int) -> str | None:
    """Returns the start of a process in ticks since the boot; ``None`` where it does not run, or
    where there is no ``/proc`` (proc(5), fields 3 and 22 of ``stat``)."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The second field is the name, in parentheses, and may contain anything.
    fields = text.rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 and fields[0] not in "ZX" else None


def is_running(process: int) -> bool:
    """Whether a process of this host runs; one that has ended and that nobody waited for does
    not."""
    try:
        os.kill(process, 0)
    except PermissionError:  # it is another user's
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return find_start(process) is not None or not Path("/proc/self/stat").exists()


def kill_process(process: int, started: str | None) -> None:
    """Kills a process, unless its number belongs to another one by now."""
    if find_start(process) == started:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(process, signal.SIGKILL)
