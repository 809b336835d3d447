"""Saves the unfinished work of an evaluation, from which a later attempt goes on.

A state is saved when enough time has passed: a twentieth of the work since this attempt began,
within ``LEAST_SECONDS`` and ``MOST_SECONDS``, and so much that saving takes at most a twentieth of
the time. When a job is killed, only what came after its last state is computed again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speechft_ray.core.errors import UserError
from speechft_ray.core.preemption import leave_if_asked, must_leave
from speechft_ray.speech import checkpointing

STATE_VERSION = 2
"""Raised whenever a state saved by older code must not be resumed."""

SAVE_SHARE = 0.05
"""Largest share of the time spent on saving."""

REPEATED_SHARE = 0.05
"""Share of the work so far that may lie between two states."""

LEAST_SECONDS, MOST_SECONDS = 1.0, 10.0
"""Bounds of what ``REPEATED_SHARE`` leads to. An evaluation that takes less than a second saves
nothing."""

_log = logging.getLogger(__name__)


def choose_interval(work_seconds: float, save_seconds: float) -> float:
    """Returns the seconds between two states, of an attempt that has worked so long and whose last
    save took so long."""
    repeated = work_seconds * REPEATED_SHARE
    return max(save_seconds / SAVE_SHARE, min(MOST_SECONDS, max(LEAST_SECONDS, repeated)))


class SavedWork:
    """The saved states of one unfinished evaluation, by name; without a folder there are none."""

    def __init__(self, folder: Path | None = None, identity: str = "") -> None:
        """``folder`` exists. ``identity``: fingerprint of all that the work depends on; states with
        another one are not used."""
        self._folder, self._identity = folder, identity
        self._began = self._saved_at = time.monotonic()
        self._save_seconds = 0.0

    def load(self, name: str, at_most: int | None = None) -> dict[str, Any] | None:
        """Returns the newest usable state of that name, tensors on the CPU; ``None`` without one.
        ``at_most``: states with a larger number are left alone.

        Damaged states are logged and skipped. The time until the next state is saved begins anew.
        """
        self._began = self._saved_at = time.monotonic()
        if self._folder is None:
            return None
        return checkpointing.load(self._folder, self._identity, self._kind(name), at_most)

    def is_due(self) -> bool:
        """Whether it is time to save a state."""
        now = time.monotonic()
        interval = choose_interval(now - self._began, self._save_seconds)
        return self._folder is not None and (now - self._saved_at >= interval or must_leave())

    def save(self, name: str, number: int, state: Mapping[str, Any]) -> None:
        """Saves a state of tensors and plain data.

        ``number`` grows with the work done. Where the folder cannot be written, this is logged once
        and the evaluation goes on. Raises ``Preempted`` where the job must leave its node.
        """
        if self._folder is None:
            return
        began, whole = time.monotonic(), {"identity": self._identity, **state}
        try:
            checkpointing.save(self._folder, number, whole, self._kind(name))
        except UserError as error:
            _log.warning("%s Until then this evaluation saves nothing more.", error)
            self._folder = None
        else:
            leave_if_asked()
        self._saved_at = time.monotonic()
        self._save_seconds = self._saved_at - began

    def _kind(self, name: str) -> str:
        """Names with other identities are other files, which are never looked at."""
        return f"{name}_{self._identity[:16]}"


NOT_SAVED = SavedWork()
"""Saves nothing."""
