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
    package: str | None = None
    """The Python package that it needs, where that is an optional one: the extra of that tracker's
    name installs it."""


TRACKERS: Registry[TrackerKind] = Registry("tracker", "speechft_ray.tracking")
"""A new tracker is one new module here that registers itself, and imports its package only when it
is opened; the contract tests then run on it."""
