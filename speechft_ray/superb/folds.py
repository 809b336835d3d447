"""One evaluation on several folds of a corpus: each fold by itself, then the mean (SUPERB's ER on
five sessions)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from pydantic import JsonValue

from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.core.records import Score, read_scores
from speechft_ray.core.specs import EvalSpec
from speechft_ray.speech.corpora.base import SPLITS, Corpus, Utterance
from speechft_ray.speech.encoders.base import Encoder
from speechft_ray.superb.evaluate import (
    FeatureOpener,
    Report,
    SharedCaches,
    WeightedEncoder,
    evaluate,
    one_thread,
)
from speechft_ray.superb.extractor import PrecomputedFeatures
from speechft_ray.superb.interpolation import measure_error
from speechft_ray.superb.tasks.base import TASKS


def evaluate_folds(
    spec: EvalSpec,
    encoder: Encoder,
    corpora: Sequence[Corpus],
    device: torch.device,
    report: Report,
    *,
    caches: SharedCaches | None = None,
    dev_only: bool = False,
    work: Path | None = None,
    pause_at: int | None = None,
    predicted_from: Sequence[WeightedEncoder] = (),
    compared_with: Sequence[WeightedEncoder] = (),
) -> dict[str, JsonValue]:
    """Returns the facts of one evaluation; with several corpora, one per fold, those of all.

    ``scores`` and ``feature_error`` are then means over folds, seed by seed and layer by layer,
    ``counts`` has one item per fold, and ``folds`` holds the facts of each. ``learning_rate`` and
    ``last_update`` are lists of those of each fold, the rate only where folds selected several;
    ``skipped`` is the largest number of a fold, and ``notes`` has those of all. ``work`` has a
    folder for each fold, and ``pause_at`` is that of each. All else is as in ``evaluate``.
    """
    if len(corpora) == 1:
        return evaluate(
            spec,
            encoder,
            corpora[0],
            device,
            report,
            caches=caches,
            dev_only=dev_only,
            work=work,
            pause_at=pause_at,
            predicted_from=predicted_from,
            compared_with=compared_with,
        )
    splits = ("train", "dev") if dev_only else SPLITS
    own = predicted_from or [WeightedEncoder(1.0, encoder, caches)]
    # Crops are not among the means of recordings: those of a prediction need every encoder.
    shares = not (predicted_from and spec.options.get("crops"))
    precomputed = precompute_means(spec, own, corpora, device, splits) if shares else None
    others = (
        precompute_means(spec, compared_with, corpora, device, splits) if compared_with else None
    )
    folds: list[dict[str, JsonValue]] = []
    counts: list[JsonValue] = []
    for corpus in corpora:
        facts = evaluate(
            spec,
            encoder,
            corpus,
            device,
            _make_fold_report(report, len(folds), len(corpora)),
            caches=caches,
            dev_only=dev_only,
            precomputed=precomputed,
            work=_make_folder(work, len(folds)),
            pause_at=pause_at,
            predicted_from=() if precomputed else predicted_from,
            compared_with=() if precomputed else compared_with,
        )
        counts += cast("list[JsonValue]", facts.pop("counts"))
        folds.append(facts)
    scores = average_scores([read_scores(facts) for facts in folds])
    encoded = sum(cast("float", facts["encoded_seconds"]) for facts in folds)
    encoded += precomputed.encoded_seconds if precomputed else 0.0
    return {
        "scores": [score.model_dump(mode="json") for score in scores],
        "counts": counts,
        **{name: folds[0][name] for name in ("seeds", "updates")},
        **_summarize(folds),
        "encoded_seconds": round(encoded, 1),
        **_average_errors(precomputed, others, folds),
        "folds": [dict(facts) for facts in folds],
    }


def _summarize(folds: Sequence[Mapping[str, Any]]) -> dict[str, JsonValue]:
    """Returns what happened in the folds, for those who look at the evaluation as a whole."""
    rates = [fold["learning_rate"] for fold in folds]
    facts: dict[str, JsonValue] = {
        "learning_rate": rates[0] if len(set(rates)) == 1 else rates,
        "skipped": {
            split: max(fold["skipped"].get(split, 0) for fold in folds)
            for split in sorted({split for fold in folds for split in fold["skipped"]})
        },
    }
    if "last_update" in folds[0]:
        facts["last_update"] = [fold["last_update"] for fold in folds]
    if notes := dict.fromkeys(note for fold in folds for note in fold.get("notes", ())):
        facts["notes"] = list(notes)
    return facts


def _average_errors(
    real: PrecomputedFeatures | None,
    predicted: PrecomputedFeatures | None,
    folds: Sequence[Mapping[str, JsonValue]],
) -> dict[str, JsonValue]:
    """Returns the feature error over all recordings where these were encoded at once, else its mean
    over folds; nothing where it was not asked for."""
    if real is not None and predicted is not None:
        return {"feature_error": list(measure_error(real.features, predicted.features))}
    errors = [
        cast("list[float]", fold["feature_error"]) for fold in folds if "feature_error" in fold
    ]
    if not errors:
        return {}
    return {"feature_error": [statistics.fmean(layer) for layer in zip(*errors, strict=True)]}


def _make_folder(work: Path | None, fold: int) -> Path | None:
    if work is None:
        return None
    folder = work / f"fold-{fold}"
    folder.mkdir(exist_ok=True)
    return folder


def precompute_means(
    spec: EvalSpec,
    encoders: Sequence[WeightedEncoder],
    corpora: Sequence[Corpus],
    device: torch.device,
    splits: Sequence[str],
) -> PrecomputedFeatures | None:
    """Encodes every recording of all folds once by each encoder, for a task that needs only means;
    ``None`` where a corpus has no ``audio_ids``, or where the corpora change waves in several ways.
    They lack the crops of utterances."""
    if not TASKS.get(spec.task).pooled or not all(corpus.audio_ids for corpus in corpora):
        return None
    transforms = {corpus.files.transform if corpus.files else "" for corpus in corpora}
    if len(transforms) > 1:
        return None
    (transform,) = transforms
    changed = {"transform": transform} if transform else {}
    # One corpus of all recordings: the folds list the same ones, in different splits.
    owners = {
        corpus.audio_ids[utterance.key]: (corpus, utterance)
        for corpus in corpora
        for utterance in corpus.utterances
        if utterance.split in splits
    }
    indices = {audio_id: index for index, audio_id in enumerate(sorted(owners))}

    def read(utterance: Utterance) -> np.ndarray:
        corpus, own = owners[utterance.key]
        return corpus.read(own)

    union = Corpus(
        name=corpora[0].name,
        fingerprint=fingerprint({"recordings": list(indices), **changed}),
        utterances=[
            Utterance(key=name, split="train", samples=owners[name][1].samples, labels={})
            for name in indices
        ],
        read=read,
        is_in_memory=all(corpus.is_in_memory for corpus in corpora),
    )
    utterances = {"train": union.utterances}
    with one_thread(device):
        opener = FeatureOpener(spec, union, device, True, utterances, None)
        source = opener.open(encoders)
        features = source.load(utterances, lambda count: None)
    return PrecomputedFeatures(features["train"], indices, source.encoded_seconds)


def average_scores(folds: Sequence[Sequence[Score]]) -> list[Score]:
    """Returns each metric and split with its values averaged over folds, seed by seed."""
    averages = []
    for of_folds in zip(*folds, strict=True):
        by_seed = zip(*(score.values for score in of_folds), strict=True)
        values = tuple(map(statistics.fmean, by_seed))
        averages.append(of_folds[0].model_copy(update={"values": values}))
    return averages


def _make_fold_report(report: Report, index: int, count: int) -> Report:
    """Returns a report of one fold's work as a part of all; every fold counts as large as the one
    that reports."""

    def report_fold(values: Mapping[str, float]) -> None:
        report({"done": index * values["total"] + values["done"], "total": count * values["total"]})

    return report_fold
