"""Chooses the form of frame features by the sizes of corpus and encoder, and checks a form that a
spec names."""

from __future__ import annotations

from collections.abc import Callable

from speechft_ray.core.errors import UserError
from speechft_ray.core.records import Place
from speechft_ray.core.specs import CorpusSpec, EvalSpec
from speechft_ray.speech.corpora.base import CORPORA, Corpus
from speechft_ray.speech.encoders.base import FAMILIES
from speechft_ray.stages.sources import start_encoder
from speechft_ray.superb.storage_plan import check_form, count_frames, resolve_auto
from speechft_ray.superb.tasks.base import TASKS
from speechft_ray.sweep.plan import FBANK

Open = Callable[[CorpusSpec], Corpus]


def resolve_features(spec: EvalSpec, is_baseline: bool, place: Place, open_: Open) -> EvalSpec:
    """Returns the spec of an evaluation with the form that ``auto`` stands for.

    Raises ``UserError`` for a form that the task or the encoder does not allow, and for a cache
    that holds nothing of it.
    """
    task = TASKS.get(spec.task)
    if task.pooled:
        if spec.features in ("int8", "compact"):
            raise UserError(
                f"the evaluation `{spec.task}` has `features: {spec.features}`, but its probe "
                "trains on means over frames, which are small and stored as they are: leave "
                "`features` out."
            )
        return spec
    if is_baseline:
        shape = FAMILIES.get(FBANK).describe({})
    else:
        weights = start_encoder(place.encoder).weights
        shape = FAMILIES.get(weights.family).describe(weights.config)
    frames = None
    if spec.features == "auto" and CORPORA.get(spec.corpus.name).needs_root:
        frames = sum(count_frames(open_(corpus).utterances) for corpus in spec.corpora())
    spec = resolve_auto(spec, frames, shape.state_count, shape.dim)
    check_form(spec, shape.state_count, shape.dim, place.cache_gb)
    return spec
