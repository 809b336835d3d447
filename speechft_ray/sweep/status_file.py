"""The status of a sweep as its driver sees it: ``<storage>/status/<fingerprint>.json``, written
every few seconds, so that any node that sees the storage can show it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from speechft_ray.core.files import write_json
from speechft_ray.core.records import Outcome, Record, Stage
from speechft_ray.core.store import Store

FOLDER = "status"

State = Literal["to_do", "running", "done", "failed", "stopped"]
"""Of a job: ``to_do`` waits or is queued, ``done`` is in the store, ``stopped`` was stopped early
on purpose or needs a run that was."""

STATES: tuple[State, ...] = ("to_do", "running", "done", "failed", "stopped")

MOST_FAILURES = 100
"""Failures that are kept; ``jobs`` counts all."""


class Best(Record):
    """The merged encoder with the best dev score so far."""

    name: str
    dev_score: float
    test_score: float | None


class Failure(Record):
    """A job that failed, without those that it blocks."""

    job: str
    error: str
    stage: Stage | None = None
    """``None``, as the empty fingerprint, in files of older versions."""
    fingerprint: str = ""

    @classmethod
    def of(cls, outcome: Outcome) -> Failure:
        """Returns what is said of a failed job."""
        return cls(
            job=outcome.label,
            error=str(outcome.error),
            stage=outcome.stage,
            fingerprint=outcome.fingerprint,
        )


class SweepStatus(Record):
    """How far a sweep is. Its fields are the keys of ``speechft status --json``
    (docs/monitoring.md)."""

    sweep: str
    fingerprint: str
    percent: float
    """Share of the jobs that are done, running ones in part."""
    jobs: Mapping[str, Mapping[str, int]]
    """Number of jobs by stage and state."""
    seconds_left: float | None
    """``None`` while unknown."""
    best: Best | None
    failures: tuple[Failure, ...]
    updated_at: float
    """Seconds since 1970."""


def count_percent(jobs: Mapping[str, Mapping[str, int]], parts: float = 0.0) -> float:
    """Returns the share of the jobs that need no more work, in percent; ``parts`` is what running
    ones have done, in jobs."""
    total = sum(sum(counts.values()) for counts in jobs.values())
    left = sum(counts.get("to_do", 0) + counts.get("running", 0) for counts in jobs.values())
    return round(100.0 * (total - left + parts) / total, 1) if total else 100.0


def write_status(root: Path, status: SweepStatus) -> None:
    """Writes the status of a sweep over the last one. Never raises ``OSError``: a full disk says so
    elsewhere."""
    path = _path(root, status.fingerprint)
    with suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        write_json(path, status.model_dump(mode="json"))


def read_status(root: Path, fingerprint: str) -> SweepStatus | None:
    """Returns the last status that a driver wrote, or ``None``."""
    try:
        content = json.loads(_path(root, fingerprint).read_text(encoding="utf-8"))
        return SweepStatus.model_validate(content)
    except (OSError, ValueError, ValidationError):
        return None


def read_failures(store: Store, fingerprint: str) -> list[Outcome]:
    """Returns the jobs of a sweep that failed in its last run and are not complete since."""
    status = read_status(store.root, fingerprint)
    return [
        Outcome(
            stage=failure.stage,
            fingerprint=failure.fingerprint,
            label=failure.job,
            error=failure.error,
        )
        for failure in (status.failures if status else ())
        if failure.stage and not store.is_complete(failure.stage, failure.fingerprint)
    ]


def now() -> float:
    """Returns the time of ``updated_at``."""
    return round(time.time(), 3)


def _path(root: Path, fingerprint: str) -> Path:
    return root / FOLDER / f"{fingerprint}.json"
