"""One stable fine-tuning run: from start weights and corpora to tuned weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.core.specs import FinetuneSpec
from speechft_ray.finetuning.batches import CACHE_BYTES, Recordings
from speechft_ray.finetuning.data import Lesson, prepare
from speechft_ray.finetuning.diagnostics import diagnose
from speechft_ray.finetuning.features import Listener, keep_fronts
from speechft_ray.finetuning.loop import Progress, Report, Run, pulse, train
from speechft_ray.finetuning.merge_statistics import gather
from speechft_ray.finetuning.pseudo_labels import with_names
from speechft_ray.finetuning.train_state import build_learner
from speechft_ray.finetuning.validation import overall
from speechft_ray.speech.checkpoints.load import weights_fingerprint
from speechft_ray.speech.corpora.base import Corpus
from speechft_ray.speech.encoders.base import EncoderWeights
from speechft_ray.speech.features.cache import FeatureCache

LOOP_VERSION = 2
"""Raised whenever a state saved by older code must not be taken up."""


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What a run yields: the encoder of its best validation, and JSON facts about how it went.

    ``statistics``: what the spec asked to ``gather``, by ``<kind>:<parameter>``, on the CPU
    (``statistics.gather``).
    """

    weights: EncoderWeights
    facts: dict[str, Any]
    statistics: Mapping[str, torch.Tensor] = field(default_factory=dict)
    kept: Mapping[float, EncoderWeights] = field(default_factory=dict)
    """The encoder after each of the spec's ``keep_at``."""


def finetune(
    spec: FinetuneSpec,
    start: EncoderWeights,
    corpora: Sequence[Corpus],
    work: Path,
    device: torch.device,
    report: Report,
    cache: FeatureCache | None = None,
) -> Tuned:
    """Fine-tunes an encoder stably and returns it with the weights of its best dev metric; heads
    are thrown away.

    ``corpora[i]`` belongs to ``spec.objectives[i]``. ``work`` is an existing folder in which an
    unfinished run leaves its states and finds them again: on the CPU the result is the same to the
    bit, however often the run was interrupted. ``cache`` keeps what a frozen front end says of the
    recordings. ``report`` gets ``done`` and ``total`` (updates): while the front end is kept with
    ``heard`` and ``to_hear`` (utterances), while the start encoder names frames with ``named`` and
    ``to_name``, then with ``loss`` and, at points of the curve, their values; whatever it raises
    ends the run. torch's global generators are left as they were. Raises ``UserError`` for labels,
    columns and recordings that cannot be learned from, for a start that cannot teach what is to be
    learned, for a ``work`` of another run, and when the loss is not finite for long.
    """
    lessons = [
        prepare(objective, corpus, start)
        for objective, corpus in zip(spec.objectives, corpora, strict=True)
    ]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        learner = build_learner(spec, start, lessons, device)
        listener = Listener(
            encoder=learner.encoder,
            device=device,
            frozen=spec.freeze_front_end,
            recordings=[Recordings(corpus, CACHE_BYTES // len(corpora)) for corpus in corpora],
        )
        keep_fronts(listener, start, lessons, cache, spec, report)
        identity = _identity(spec, start, corpora)
        waiting = {"done": 0, "total": spec.updates}
        lessons = with_names(
            lessons, listener, work, identity, lambda counts: report({**waiting, **counts})
        )
        run = Run(
            spec=spec,
            lessons=lessons,
            listener=listener,
            learner=learner,
            work=work,
            identity=identity,
        )
        progress = train(run, report)
        statistics = gather(run, progress, report) if spec.gather else {}
        kept = {fraction: _weights(start, tensors) for fraction, tensors in progress.kept.items()}
        checkpoints = {"best": _weights(start, progress.best), **kept}
        found = diagnose(start, checkpoints, lessons, listener, pulse(spec, report))
    return Tuned(
        weights=checkpoints["best"],
        facts={**_facts(lessons, progress), "diagnostics": found},
        statistics=statistics,
        kept={float(fraction): weights for fraction, weights in kept.items()},
    )


def _weights(start: EncoderWeights, learnt: Mapping[str, torch.Tensor]) -> EncoderWeights:
    """Whatever did not learn is taken from the start weights, so it is equal to the bit."""
    state = {name: learnt.get(name, value) for name, value in start.state.items()}
    return EncoderWeights(family=start.family, config=start.config, state=state)


def _facts(lessons: Sequence[Lesson], progress: Progress) -> dict[str, Any]:
    metrics = [lesson.kind.metric for lesson in lessons]
    name, best = overall(metrics, progress.best_values)
    return {
        "metric": name,
        "best_dev": best,
        "best_update": progress.best_update,
        "objectives": [
            {"metric": metric, "best_dev": value, "vocabulary": lesson.vocabulary.size}
            for metric, value, lesson in zip(metrics, progress.best_values, lessons, strict=True)
        ],
        "curve": progress.curve,
        "skipped_updates": progress.skipped,
        "part_seconds": progress.part_seconds,
        "seconds": progress.seconds,
        "updates_per_second": progress.update / progress.seconds,
    }


def _identity(spec: FinetuneSpec, start: EncoderWeights, corpora: Sequence[Corpus]) -> str:
    """Fingerprint of everything that a saved state must agree with."""
    content = [corpus.fingerprint for corpus in corpora]
    return fingerprint([LOOP_VERSION, spec.identity(), weights_fingerprint(start), content])
