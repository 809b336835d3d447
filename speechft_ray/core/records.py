"""Facts: what a job is, where it runs, and what came of it. Frozen, plain data, safe to send over a
wire."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from speechft_ray.core.resources import ResourceRequest

Stage = Literal["corpus", "finetune", "merge", "evaluate"]
STAGES: tuple[Stage, ...] = ("corpus", "finetune", "merge", "evaluate")


class Record(BaseModel):
    """Base of all records."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Place(Record):
    """Where a run finds and leaves things. Never part of identity."""

    storage: str
    """Root of the store, reachable under this path from every node."""
    encoder: str
    """Name or file of the pre-trained encoder. The driver reads it; workers find it in the
    store."""
    corpora: str | None = None
    """Folder that holds the real corpora, one sub-folder each."""
    roots: dict[str, str] = Field(default_factory=dict)
    """Folders of single corpora, by name; they go before ``corpora``."""
    manifest: str | None = None
    """The user's own recordings: a tsv file."""
    cache: str | None = None
    """Folder for features that may be lost, best on a disk of the node itself; ``None``: ``cache``
    in the storage."""
    cache_gb: float = Field(default=50.0, ge=0)
    """Most that the cache may take, in 10^9 bytes; what was used longest ago makes room."""
    device: Literal["auto", "cpu"] = "auto"
    """``auto`` takes the GPU that the job was given, else the CPU."""


class Job(Record):
    """One unit of work, ready to be performed anywhere."""

    stage: Stage
    fingerprint: str
    label: str
    """What dashboards and progress lines show, for example ``evaluate pr alpha=0.25``."""
    payload: dict[str, JsonValue]
    """The specs of this unit and the fingerprints of its inputs."""
    needs: tuple[str, ...] = ()
    """Fingerprints of the jobs that must be complete first."""
    resources: ResourceRequest = ResourceRequest()


class Score(Record):
    """One metric of one evaluation; ``values`` holds one number per probe seed, in the metric's
    unit."""

    metric: str
    split: Literal["dev", "test"]
    values: tuple[float, ...] = Field(min_length=1)

    @property
    def mean(self) -> float:
        return math.fsum(self.values) / len(self.values)


class Outcome(Record):
    """What came of a job: facts, or the error with its traceback. Never an exception across the
    wire."""

    stage: Stage
    fingerprint: str
    label: str
    facts: dict[str, JsonValue] = Field(default_factory=dict)
    error: str | None = None
    """One line: what went wrong."""
    traceback: str | None = None
    blocked_by: str | None = None
    """Label of the failed job without which this one could not start; such an outcome is no failure
    of its own."""
    stopped: bool = False
    """Whether it was ended early on purpose, or needs a run that was: no result, and no failure
    either."""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return self.error is None


def read_scores(facts: Mapping[str, Any]) -> list[Score]:
    """Returns the scores in the facts of an evaluation."""
    return [Score.model_validate(item) for item in facts.get("scores", [])]
