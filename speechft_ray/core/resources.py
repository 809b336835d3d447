"""Resource requests of jobs. Never part of identity: hardware does not change a unit."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ResourceRequest(BaseModel):
    """CPUs, GPUs (a fraction shares a device) and memory of one job."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpus: float = Field(default=1.0, ge=0)
    gpus: float = Field(default=0.0, ge=0)
    memory_bytes: int = Field(default=0, ge=0)
