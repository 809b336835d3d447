"""Resource requests of jobs. Never part of identity: hardware does not change a unit."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

_LABEL_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9./_-]{0,125}")
_WORD = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
_SELECTOR = re.compile(rf"!?(?:{_WORD}|in\( *{_WORD}(?: *, *{_WORD})* *\))")


def match_label(selector: str, value: str | None) -> bool:
    """Whether the label of a node, ``None`` where it has none, is what a selector of Ray asks
    for."""
    rest = selector.removeprefix("!")
    values = rest[3:-1].split(",") if rest.startswith("in(") else [rest]
    return (value in [item.strip() for item in values]) is (rest == selector)


class ResourceRequest(BaseModel):
    """CPUs, GPUs (a fraction shares a device) and memory of one job.

    ``gpu_memory_bytes``: what the job needs of a GPU's memory. Where it is above 0, the cluster
    turns it into a fraction of its GPUs, at most ``gpus``. ``labels``: what the labels of its node
    must be, as selectors of Ray. ``explicit``: the fields that a user asked for, which are refused
    or waited for where no node has them. All else is fitted to the largest node.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpus: float = Field(default=1.0, ge=0)
    gpus: float = Field(default=0.0, ge=0)
    memory_bytes: int = Field(default=0, ge=0)
    gpu_memory_bytes: int = Field(default=0, ge=0)
    labels: dict[str, str] = Field(default_factory=dict)
    explicit: tuple[str, ...] = ()


MOST = 1e6
"""Cores, GPUs or GB of one job that a spec may ask for."""


class StageResources(BaseModel):
    """What each job of a stage asks of the cluster, in place of what it needs by estimate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpus: Annotated[float, Field(gt=0, le=MOST, allow_inf_nan=False)] | None = None
    gpus: Annotated[float, Field(ge=0, le=MOST, allow_inf_nan=False)] | None = None
    """Below 1: a share of one GPU."""
    memory_gb: Annotated[float, Field(gt=0, le=MOST, allow_inf_nan=False)] | None = None
    """Main memory in 10^9 bytes that a node sets aside for the job; Ray does not enforce it."""
    labels: dict[str, str] | None = None
    """Labels that a node must have, ``ray.io/accelerator-type: A100`` among them, with Ray's
    selectors ``!VALUE``, ``in(A, B)`` and ``!in(A, B)``."""

    def to_request(self) -> dict[str, object]:
        """Returns the fields that are set as those of ``ResourceRequest``."""
        values: dict[str, object] = self.model_dump(exclude_none=True)
        if "memory_gb" in values:
            gigabytes: Any = values.pop("memory_gb")
            values["memory_bytes"] = int(float(gigabytes) * 1e9)
        return values

    @model_validator(mode="after")
    def _labels_are_selectors(self) -> StageResources:
        for key, value in (self.labels or {}).items():
            if not _LABEL_KEY.fullmatch(key) or not _SELECTOR.fullmatch(value):
                raise ValueError(
                    f"`labels` has `{key}: {value}`, but must be names and values of node labels "
                    "of Ray, such as `ray.io/accelerator-type: A100`, `!A100` or `in(A100, L4)`"
                )
        return self

    @model_validator(mode="after")
    def _whole_gpus_or_a_share(self) -> StageResources:
        if self.gpus is not None and self.gpus > 1 and self.gpus % 1:
            raise ValueError(
                f"`gpus` must be a share of one GPU or a whole number of them, but is {self.gpus:g}"
            )
        return self
