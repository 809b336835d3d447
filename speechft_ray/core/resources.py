"""Resource requests of jobs. Never part of identity: hardware does not change a unit."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ResourceRequest(BaseModel):
    """CPUs, GPUs (a fraction shares a device) and memory of one job.

    ``gpu_memory_bytes``: what the job needs of a GPU's memory. Where it is above 0, the cluster
    turns it into a fraction of its GPUs, at most ``gpus``. ``explicit``: the fields that a user
    asked for, ``cpus`` or ``gpus``, which are refused where no node has them. All else is fitted to
    the largest node.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpus: float = Field(default=1.0, ge=0)
    gpus: float = Field(default=0.0, ge=0)
    memory_bytes: int = Field(default=0, ge=0)
    gpu_memory_bytes: int = Field(default=0, ge=0)
    explicit: tuple[str, ...] = ()


class StageResources(BaseModel):
    """What each job of a stage asks of the cluster, in place of what it needs by estimate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpus: Annotated[float, Field(gt=0)] | None = None
    gpus: Annotated[float, Field(ge=0)] | None = None
    """Below 1: a share of one GPU."""

    @model_validator(mode="after")
    def _whole_gpus_or_a_share(self) -> StageResources:
        if self.gpus is not None and self.gpus > 1 and self.gpus % 1:
            raise ValueError(
                f"`gpus` must be a share of one GPU or a whole number of them, but is {self.gpus:g}"
            )
        return self
