"""Records: a job, where it runs, and its outcome. Frozen plain data that can be sent to workers."""

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
    """Where a run reads and writes. Never part of identity."""

    storage: str
    """Root of the store, reachable under this path from every node."""
    storage_id: str | None = None
    """Id of the storage folder that the driver sees (``core.marker``); a node that sees another
    does not work. ``None``: not checked."""
    encoder: str
    """Name or file of the pre-trained encoder. The driver alone reads it; workers read the
    store."""
    corpora: str | None = None
    """Folder that holds the real corpora, one sub-folder each."""
    roots: dict[str, str] = Field(default_factory=dict)
    """Folders of single corpora by name; they take precedence over ``corpora``."""
    manifest: str | None = None
    """The user's own recordings: a tsv file."""
    cache: str | None = None
    """Folder for features that can be computed again, best on a local disk of the node; ``None``:
    ``cache`` in the storage."""
    cache_gb: float = Field(default=50.0, ge=0)
    """Largest size of the cache in 10^9 bytes; the least recently used features are removed."""
    device: Literal["auto", "cpu"] = "auto"
    """``auto``: the GPU that the job was assigned, else the CPU."""
    gpu_share: float = Field(default=1.0, gt=0)
    """Of a GPU that several jobs share, the part that this job was assigned."""


class Limits(Record):
    """How patient a run is with its workers. Never part of identity."""

    retries: int = Field(default=3, ge=0)
    """How often a job runs again after it lost its worker or node without progress in between
    (Ray's own default for tasks). Python errors are not retried."""
    stall_minutes: dict[Stage, float] = Field(default_factory=lambda: dict.fromkeys(STAGES, 60.0))
    """A job that reports no progress for so long is killed and runs again; 0: never. Stages that
    are not named have no limit."""


class Job(Record):
    """One unit of work that any worker can perform."""

    stage: Stage
    fingerprint: str
    label: str
    """Name in dashboards and progress lines, for example ``evaluate pr alpha=0.25``."""
    payload: dict[str, JsonValue]
    """The specs of this unit and the fingerprints of its inputs."""
    needs: tuple[str, ...] = ()
    """Fingerprints of the jobs that must be complete first."""
    corpora: tuple[str, ...] = ()
    """Identities of the corpora on disk that it reads, in the order of its spec; empty for one that
    a job makes."""
    resources: ResourceRequest = ResourceRequest()

    @property
    def work_key(self) -> str:
        """Fingerprint of the unit whose unfinished work this job goes on with: a rung of a search
        leaves its own to the whole evaluation."""
        pause: Any = self.payload.get("pause")
        return str(pause["evaluation"]) if pause else self.fingerprint


class Score(Record):
    """One metric of one evaluation; ``values`` has one number per probe seed."""

    metric: str
    split: Literal["dev", "test"]
    values: tuple[float, ...] = Field(min_length=1)

    @property
    def mean(self) -> float:
        return math.fsum(self.values) / len(self.values)


class Outcome(Record):
    """The result of a job: facts, or the error with its traceback. Workers send no exceptions."""

    stage: Stage
    fingerprint: str
    label: str
    facts: dict[str, JsonValue] = Field(default_factory=dict)
    error: str | None = None
    """One line: what went wrong."""
    traceback: str | None = None
    blocked_by: str | None = None
    """Label of the failed job that this one needs, directly or not; it was not started."""
    stopped: bool = False
    """Whether it was stopped early on purpose, or needs a run that was: not a failure."""
    cannot_store: Literal["", "disk full", "storage down"] = ""
    """Why it could not be stored; no other job can be then, either."""
    unfit_node: str | None = None
    """Ray's id of a node that cannot perform jobs of this run; ``error`` says why."""
    leaves_node: bool = False
    """Whether the job saved its state and goes on elsewhere, since its node is taken away."""
    lacks_gpu_share: bool = False
    """Whether the share of a GPU that was estimated for it was too small."""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return self.error is None


def read_scores(facts: Mapping[str, Any]) -> list[Score]:
    """Returns the scores in the facts of an evaluation."""
    return [Score.model_validate(item) for item in facts.get("scores", [])]
