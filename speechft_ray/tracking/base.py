"""The registry of trackers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from speechft_ray.core.registry import Registry
from speechft_ray.sweep.protocols import Tracker


class TrackerKind(NamedTuple):
    """How to open a tracker, and how to call it."""

    open: Callable[[Path, str, str | None], Tracker]
    """Takes the storage folder, the name of the sweep and ``--mlflow``, and returns the tracker."""
    blocks: bool
    """Whether its calls may wait for another process; ``BackgroundTracker`` then makes them."""


TRACKERS: Registry[TrackerKind] = Registry("tracker", "speechft_ray.tracking")
"""A new tracker is one new module here that registers itself; the contract tests then run on it."""
