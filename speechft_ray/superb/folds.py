"""One evaluation on several folds of a corpus: each by itself, then the mean (SUPERB's ER on five
sessions)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import torch
from pydantic import JsonValue

from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.core.records import Score, read_scores
from speechft_ray.core.specs import EvalSpec
from speechft_ray.speech.corpora.base import SPLITS, Corpus, Utterance
from speechft_ray.speech.encoders.base import Encoder
from speechft_ray.superb.evaluate import (
    Report,
    SharedCaches,
    evaluate,
    make_front_ends,
    make_storage,
    one_thread,
)
from speechft_ray.superb.features import Extractor, PrecomputedFeatures, prepare_features
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
) -> dict[str, JsonValue]:
    """Returns the facts of one evaluation; with several corpora, one per fold, those of all.

    ``scores`` are then means over folds, seed by seed, ``counts`` has one item per fold, and
    ``folds`` holds the facts of each (see ``evaluate``).
    """
    if len(corpora) == 1:
        return evaluate(spec, encoder, corpora[0], device, report, caches=caches, dev_only=dev_only)
    folds: list[dict[str, JsonValue]] = []
    counts: list[JsonValue] = []
    precomputed = _heard(
        spec, encoder, corpora, device, caches, ("train", "dev") if dev_only else SPLITS
    )
    for corpus in corpora:
        told = _part(report, len(folds), len(corpora))
        facts = evaluate(
            spec,
            encoder,
            corpus,
            device,
            told,
            caches=caches,
            dev_only=dev_only,
            precomputed=precomputed,
        )
        counts += cast("list[JsonValue]", facts.pop("counts"))
        folds.append(facts)
    return {
        "scores": [
            score.model_dump(mode="json")
            for score in mean_scores([read_scores(facts) for facts in folds])
        ],
        "counts": counts,
        **{name: folds[0][name] for name in ("seeds", "learning_rate", "updates")},
        "folds": [dict(facts) for facts in folds],
    }


def _heard(
    spec: EvalSpec,
    encoder: Encoder,
    corpora: Sequence[Corpus],
    device: torch.device,
    caches: SharedCaches | None,
    splits: Sequence[str],
) -> PrecomputedFeatures | None:
    """Encodes every recording of all folds once, for a task that needs means alone; ``None`` where
    contents are not known."""
    if not TASKS.get(spec.task).pooled or not all(corpus.audio_ids for corpus in corpora):
        return None
    owners = {
        corpus.audio_ids[utterance.key]: (corpus, utterance)
        for corpus in corpora
        for utterance in corpus.utterances
        if utterance.split in splits
    }
    places = {content: place for place, content in enumerate(sorted(owners))}

    def read(utterance: Utterance) -> np.ndarray:
        corpus, own = owners[utterance.key]
        return corpus.read(own)

    union = Corpus(
        name=corpora[0].name,
        fingerprint=fingerprint({"recordings": list(places)}),
        utterances=[
            Utterance(key=name, split="train", samples=owners[name][1].samples, labels={})
            for name in places
        ],
        read=read,
    )
    with one_thread(device):
        extract = Extractor(encoder, union, device, True, make_front_ends(caches, encoder, union))
        found = prepare_features(
            extract, {"train": union.utterances}, lambda count: None, make_storage(caches)
        )
    return PrecomputedFeatures(found["train"], places)


def mean_scores(folds: Sequence[Sequence[Score]]) -> list[Score]:
    """Returns each metric and split with its values averaged over folds, seed by seed."""
    return [
        alike[0].model_copy(
            update={
                "values": tuple(
                    map(statistics.fmean, zip(*(score.values for score in alike), strict=True))
                )
            }
        )
        for alike in zip(*folds, strict=True)
    ]


def _part(report: Report, index: int, count: int) -> Report:
    """Reports the work of one fold as a part of all; folds are taken to be of one size until they
    begin."""

    def told(values: Mapping[str, float]) -> None:
        report({"done": index * values["total"] + values["done"], "total": count * values["total"]})

    return told
