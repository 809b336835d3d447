"""What a plan needs beside its spec."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from speechft_ray.core.records import Stage
from speechft_ray.core.resources import ResourceRequest
from speechft_ray.core.specs import CorpusSpec, EvalSpec

Component = Literal["head", "method", "task"]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a plan needs beside the spec."""

    encoder: str
    """Fingerprint of the pre-trained weights."""
    corpus: Callable[[CorpusSpec], tuple[str, bool]]
    """Returns the identity of a corpus' content, and whether a job must make the corpus first."""
    resources: Mapping[Stage, ResourceRequest] = field(default_factory=dict)
    """What the jobs of each stage request."""
    gpu_memory: Callable[[EvalSpec, str | None], int] = lambda spec, encoder: 0
    """Returns the bytes of GPU memory that an evaluation of an encoder (or of FBank) needs."""
    trains: Callable[[str], bool] = lambda task: True
    """Whether a registered task trains probes, and so has rungs."""
    can_screen: Callable[[EvalSpec, str], bool] = lambda spec, by: True
    """Whether encoders can be compared on an evaluation by a kind of screen."""
    masks: Callable[[str], bool] = lambda head: False
    """Whether a registered head masks frames, which trains the mask embedding."""
    resolve_evaluation: Callable[[EvalSpec, bool], EvalSpec] = lambda spec, is_baseline: spec
    """Returns the spec of an evaluation with the form of features that sizes lead to."""
    version_of: Callable[[Component, str], int] = lambda component, name: 1
    """Returns the version of a registered head, merge method or task. Version 1 adds nothing to
    what is hashed, so that fingerprints from before there were versions stay."""
