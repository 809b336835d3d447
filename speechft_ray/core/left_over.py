"""Tells what a publication left that was killed (``Store.publish``) from one that is under way."""

from __future__ import annotations

import re
import socket
import time

from speechft_ray.core.processes import is_running
from speechft_ray.core.store import DISCARDED, Entry

ABANDONED_SECONDS = 6 * 3600.0
"""What was not changed for so long is left over: a writer adds to its files every few minutes."""

_NAME = re.compile(r"\.[^-]+-(?P<host>.+)-(?P<process>\d+)-[0-9a-f]{8}")
"""Of the folder that ``Store.publish`` fills."""


def is_abandoned(entry: Entry) -> bool:
    """Whether nobody fills a hidden folder of a stage any more: its process was one of this host
    and has ended, or it was not changed for hours."""
    if entry.name.startswith(DISCARDED) or time.time() - entry.modified > ABANDONED_SECONDS:
        return True
    writer = _NAME.fullmatch(entry.name)
    if writer is None or writer["host"] != socket.gethostname():
        return False
    return not is_running(int(writer["process"]))
