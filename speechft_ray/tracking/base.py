"""Every kind of tracker by name, each opened with its defaults in a storage folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from speechft_ray.core.registry import Registry
from speechft_ray.sweep.protocols import Tracker

TRACKERS: Registry[Callable[[Path], Tracker]] = Registry("tracker", "speechft_ray.tracking")
"""A new tracker is one new module here that registers itself; the contract tests then run over
it."""
