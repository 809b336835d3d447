"""One stable fine-tuning run, from start weights and corpora to fine-tuned weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.core.specs import FinetuneSpec
from speechft_ray.finetuning.batches import CACHE_BYTES, AudioCache
from speechft_ray.finetuning.data import ObjectiveData, load_objective
from speechft_ray.finetuning.diagnostics import compute_diagnostics
from speechft_ray.finetuning.features import FeatureLoader, cache_conv_features
from speechft_ray.finetuning.loop import Progress, Report, RunContext, make_heartbeat, train
from speechft_ray.finetuning.merge_statistics import collect_statistics
from speechft_ray.finetuning.pseudo_labels import with_pseudo_labels
from speechft_ray.finetuning.train_state import build_train_state
from speechft_ray.finetuning.validation import average_metrics, score_constant_answer
from speechft_ray.speech.checkpoints.load import weights_fingerprint
from speechft_ray.speech.corpora.base import Corpus
from speechft_ray.speech.encoders.base import EncoderWeights
from speechft_ray.speech.features.cache import FeatureCache
from speechft_ray.speech.precision import use_float32_products
from speechft_ray.speech.prefetch import count_readers

LOOP_VERSION = 2
"""Raised whenever a state saved by older code must not be resumed."""


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """The encoder of the best validation, and JSON facts about the run."""

    weights: EncoderWeights
    facts: dict[str, Any]
    statistics: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Merge statistics that the spec asks for (``gather``), by ``<kind>:<parameter>``, on the
    CPU."""
    early_checkpoints: Mapping[float, EncoderWeights] = field(default_factory=dict)
    """The encoder after each fraction in the spec's ``keep_at``."""


def finetune(
    spec: FinetuneSpec,
    start: EncoderWeights,
    corpora: Sequence[Corpus],
    work: Path,
    device: torch.device,
    report: Report,
    cache: FeatureCache | None = None,
) -> FinetuneResult:
    """Fine-tunes an encoder and returns the weights of its best dev metric after the head-only
    phase; heads are discarded.

    ``corpora[i]`` belongs to ``spec.objectives[i]``. ``work``: an existing folder for the saved
    states of an unfinished run. On the CPU the result is the same to the bit, however often the run
    was interrupted. ``cache``: disk cache for the output of a frozen front end.

    ``report`` gets ``done`` and ``total`` (updates). With them come ``cached`` and ``to_cache``
    (utterances) while the front end's output is cached, ``named`` and ``to_name`` while
    pseudo-labels are predicted, then ``loss`` and, at points of the curve, their values. An
    exception from ``report`` ends the run. torch's global generators are left unchanged.

    Raises ``UserError`` for labels, columns and recordings that cannot be trained on, for a start
    encoder that cannot predict the pseudo-labels of an objective, for a ``work`` folder of another
    run, and when the loss is not finite for too many updates.
    """
    # Load the examples: every mistake in labels and options raises here.
    objectives = [
        load_objective(objective, corpus, start)
        for objective, corpus in zip(spec.objectives, corpora, strict=True)
    ]
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        use_float32_products("float32", device),  # all but training and validation
    ):
        # Build encoder, heads and optimizer.
        state = build_train_state(spec, start, objectives, device)
        loader = FeatureLoader(
            encoder=state.encoder,
            device=device,
            freeze_front_end=spec.freeze_front_end,
            audio_caches=[AudioCache(corpus, CACHE_BYTES // len(corpora)) for corpus in corpora],
            readers=max(count_readers(device, corpus) for corpus in corpora),
            precision=spec.precision,
        )
        # Compute what the start encoder provides: front-end features and pseudo-labels.
        cache_conv_features(loader, start, objectives, cache, spec, report)
        identity = _identity(spec, start, corpora)
        no_updates = {"done": 0, "total": spec.updates}
        objectives = with_pseudo_labels(
            objectives, loader, work, identity, lambda counts: report({**no_updates, **counts})
        )
        # Train, or resume from the last saved state.
        run = RunContext(
            spec=spec,
            objectives=objectives,
            loader=loader,
            state=state,
            work=work,
            identity=identity,
        )
        progress = train(run, report)
        # Compute merge statistics and diagnostics of the result.
        statistics = collect_statistics(run, progress, report) if spec.gather else {}
        early_checkpoints = {
            fraction: _fill_from_start(start, tensors)
            for fraction, tensors in progress.early_checkpoints.items()
        }
        checkpoints = {"best": _fill_from_start(start, progress.best), **early_checkpoints}
        diagnostics = compute_diagnostics(
            start, checkpoints, objectives, loader, make_heartbeat(spec, report)
        )
    return FinetuneResult(
        weights=checkpoints["best"],
        facts={**_facts(objectives, progress), "diagnostics": diagnostics},
        statistics=statistics,
        early_checkpoints={
            float(fraction): weights for fraction, weights in early_checkpoints.items()
        },
    )


def _fill_from_start(start: EncoderWeights, tensors: Mapping[str, torch.Tensor]) -> EncoderWeights:
    """Returns all weights of an encoder; those that were not trained are equal to the start's to
    the bit."""
    state = {name: tensors.get(name, value) for name, value in start.state.items()}
    return EncoderWeights(family=start.family, config=start.config, state=state)


def _facts(objectives: Sequence[ObjectiveData], progress: Progress) -> dict[str, Any]:
    metrics = [data.kind.metric for data in objectives]
    name, best = average_metrics(metrics, progress.best_values)
    return {
        "metric": name,
        "best_dev": best,
        "best_update": progress.best_update,
        "objectives": [
            {
                "metric": metric,
                "best_dev": value,
                "constant_dev": score_constant_answer(data),
                "vocabulary": data.vocabulary.size,
            }
            for metric, value, data in zip(metrics, progress.best_values, objectives, strict=True)
        ],
        "curve": progress.curve,
        "skipped_updates": progress.skipped,
        "part_seconds": progress.micro_batch_seconds,
        "seconds": progress.seconds,
        "updates_per_second": progress.update / progress.seconds,
    }


def _identity(spec: FinetuneSpec, start: EncoderWeights, corpora: Sequence[Corpus]) -> str:
    """Returns the fingerprint of everything that a saved state must agree with."""
    content = [corpus.fingerprint for corpus in corpora]
    return fingerprint([LOOP_VERSION, spec.identity(), weights_fingerprint(start), content])
