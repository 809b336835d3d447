"""One evaluation: a frozen encoder, one task, one corpus; a probe per seed; every metric of dev and
test."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal, NamedTuple

import torch
from pydantic import JsonValue

from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.core.metrics import is_better
from speechft_ray.core.records import Score
from speechft_ray.core.specs import EvalSpec
from speechft_ray.speech.corpora.base import Corpus, Utterance
from speechft_ray.speech.encoders.base import Encoder, Shape
from speechft_ray.speech.features.cache import FeatureCache
from speechft_ray.speech.features.front_end import SharedFrontEnd
from speechft_ray.speech.precision import encode_in, use_float32_products
from speechft_ray.superb.counts import count_test_set
from speechft_ray.superb.extractor import Advance, Extractor, PrecomputedFeatures
from speechft_ray.superb.feature_store import (
    IN_MEMORY,
    FeatureStorage,
    FeatureStore,
)
from speechft_ray.superb.features import load_features, open_features
from speechft_ray.superb.probe import Schedule, TrainedProbe
from speechft_ray.superb.selection import list_references, predict
from speechft_ray.superb.setup import build_task_data, make_schedule, select_learning_rates
from speechft_ray.superb.stacked import train_stacked
from speechft_ray.superb.storage_facts import describe_storage
from speechft_ray.superb.tasks.base import (
    TASKS,
    Task,
    TaskData,
    TrainingFreeTask,
    list_utterances,
)
from speechft_ray.superb.training import train_probes

Report = Callable[[Mapping[str, float]], None]
"""Called with ``{"done": .., "total": ..}``: utterances encoded and updates made, of all seeds."""

REPORTS = 200
"""Reports of one evaluation, at most."""


@dataclass(frozen=True, kw_only=True)
class SharedCaches:
    """What an evaluation shares with other evaluations."""

    cache: FeatureCache
    """Features on disk."""
    encoder: str
    """The encoder's fingerprint."""
    front_end: tuple[str, Shape] | None
    """Prefix of the front end's parameters, and its shape; ``None`` for an encoder without one."""


def evaluate(
    spec: EvalSpec,
    encoder: Encoder,
    corpus: Corpus,
    device: torch.device,
    report: Report,
    *,
    caches: SharedCaches | None = None,
    dev_only: bool = False,
    precomputed: PrecomputedFeatures | None = None,
) -> dict[str, JsonValue]:
    """Trains the probes of an evaluation and returns its facts.

    ``scores``: a ``Score`` per metric and split, one value per seed, in the metric's unit, at the
    learning rate with the best mean on dev. ``counts``: what the metrics of test are made of
    (``superb.counts``), to be stored beside the facts. ``details``: what else was measured, such as
    the layer or the threshold that dev selected. ``seeds``, ``learning_rate`` (the selected one),
    ``updates``, ``utterances`` and ``skipped`` recordings by split, ``seconds`` by phase,
    ``encoded_seconds`` of audio that went through the encoder (less with a cache); per seed
    ``best_update`` and ``layer_weights`` (softmax). With several rates, ``grid`` has every rate and
    seed with its metrics. Test is encoded and scored once, by each probe at its best validation on
    dev; with ``dev_only`` not at all, and dev is the same to the last digit. ``precomputed`` holds
    means that need not be computed. The encoder is left in eval mode on ``device``.

    On a CPU one torch thread is used, since the order of sums, and with it the last digits, depends
    on their number. Raises ``UserError`` for a column, split, label or option that does not fit the
    task.
    """
    # Build the task on the corpus, and count the work.
    task = TASKS.get(spec.task)
    data = build_task_data(task, spec, corpus)
    schedule, rates = make_schedule(task, spec), select_learning_rates(task, spec)
    probes = spec.seeds * len(rates) if isinstance(data, TaskData) else 0
    examples = {
        split: items for split, items in data.examples.items() if split != "test" or not dev_only
    }
    progress = Progress(report, sum(map(len, examples.values())) + probes * spec.updates)
    # Encode, train and score: one outcome per learning rate and seed.
    began = time.perf_counter()
    with one_thread(device), use_float32_products("float32", device):
        front_end = make_shared_front_end(caches, spec, encoder, data.corpus)
        precise = encode_in(spec.precision, encoder, device)
        extractor = Extractor(precise, data.corpus, device, task.pooled, front_end, precomputed)
        utterances = {split: list_utterances(items) for split, items in examples.items()}
        store = FeatureStore(extractor, utterances, make_storage(caches, spec))
        if isinstance(data, TrainingFreeTask):
            outcomes = _run_training_free(data, store, utterances, spec.seeds, progress.advance)
        else:
            outcomes = _train_and_test(
                data, store, utterances, schedule, rates, spec.seeds, progress.advance
            )
    feature_seconds = extractor.seconds
    seconds = {
        "features": feature_seconds,
        "probe": time.perf_counter() - began - feature_seconds,
    }
    # Select the learning rate on dev; the facts are those of its seeds.
    selected = _select_rate(schedule.metric, outcomes.dev, spec.seeds)
    seeds = slice(selected * spec.seeds, (selected + 1) * spec.seeds)
    dev, test, trained = outcomes.dev[seeds], outcomes.test[seeds], outcomes.trained[seeds]
    facts: dict[str, JsonValue] = {
        "scores": _make_scores(task, dev, test),
        "counts": count_test_set(data, outcomes.predictions[seeds], test),
        "details": _collect_details(task, dev, test),
        "seeds": spec.seeds,
        "learning_rate": rates[selected],
        "updates": spec.updates,
        "best_update": [each.best_update for each in trained],
        "layer_weights": [_layer_weights(each) for each in trained],
        "utterances": {split: _count_utterances(data, split) for split in examples},
        "skipped": dict(corpus.skipped),
        "seconds": {phase: round(value, 3) for phase, value in seconds.items()},
        "encoded_seconds": round(extractor.encoded_seconds, 1),
    }
    facts |= describe_storage(store)
    if len(rates) > 1 and outcomes.trained:
        facts["grid"] = _make_grid(rates, spec.seeds, outcomes)
    return facts


class _Outcomes(NamedTuple):
    """What an evaluation measured, rate by rate and seed by seed. ``trained`` and ``predictions``,
    those on test, are empty for a task without training."""

    trained: Sequence[TrainedProbe]
    dev: Sequence[Mapping[str, float]]
    test: Sequence[Mapping[str, float]]
    predictions: Sequence[Sequence[Any]] = ()


def _train_and_test(
    data: TaskData,
    store: FeatureStore,
    utterances: Mapping[str, Sequence[Utterance]],
    schedule: Schedule,
    rates: Sequence[float],
    seeds: int,
    advance: Advance,
) -> _Outcomes:
    # Encode train and dev.
    splits = {split: utterances[split] for split in ("train", "dev")}
    features = load_features(store, splits, advance)
    train, dev = features["train"], features["dev"]
    # Train a probe for every rate and seed: stacked if the head allows it.
    if data.pooled_head is not None:
        by_rate = train_stacked(data, train, dev, schedule, rates, seeds, advance)
        trained = [probe for of_rate in by_rate for probe in of_rate]
    else:
        rates_and_seeds = [(rate, seed) for rate in rates for seed in range(seeds)]
        trained = train_probes(data, train, dev, schedule, rates_and_seeds, 0, advance)
    dev_metrics = [each.dev for each in trained]
    if "test" not in utterances:
        return _Outcomes(trained, dev_metrics, [])
    # Score all probes on test, which is encoded once for all of them. Means are read as a whole,
    # frame states while they are scored, so that memory stays small.
    if store.extractor.pooled:
        test = load_features(store, {"test": utterances["test"]}, advance)["test"]
    else:
        test = open_features(store, utterances["test"], advance)
    advance_test = advance if test.location == "recomputed" else _ignore
    predictions = predict(data, [each.probe for each in trained], test, advance_test)
    dev_references, references = list_references(data, "dev"), list_references(data, "test")
    test_metrics = [
        data.compute_test_metrics(each.dev_predictions, dev_references, of_probe, references)
        for each, of_probe in zip(trained, predictions, strict=True)
    ]
    return _Outcomes(trained, dev_metrics, test_metrics, predictions)


def _select_rate(metric: str, dev: Sequence[Mapping[str, float]], seeds: int) -> int:
    """Returns the index of the rate with the best mean over seeds on dev, the first of equals."""
    means = [
        fmean(metrics[metric] for metrics in dev[start : start + seeds])
        for start in range(0, len(dev), seeds)
    ]
    best = 0
    for index, value in enumerate(means):
        if is_better(metric, value, means[best]):
            best = index
    return best


def _make_grid(rates: Sequence[float], seeds: int, outcomes: _Outcomes) -> list[JsonValue]:
    return [
        {
            "learning_rate": rates[index // seeds],
            "seed": index % seeds,
            "best_update": probe.best_update,
            "dev": dict(dev),
            "test": dict(outcomes.test[index]) if outcomes.test else None,
        }
        for index, (probe, dev) in enumerate(zip(outcomes.trained, outcomes.dev, strict=True))
    ]


def make_storage(caches: SharedCaches | None, spec: EvalSpec) -> FeatureStorage:
    """Returns where and in which form features are stored, and of which encoder: of one whose
    states are less exact the precision is part of the identity."""
    storage = IN_MEMORY._replace(form=spec.features, rank=spec.rank)
    if caches is None:
        return storage
    exact = spec.precision == "float32"
    encoder = (
        caches.encoder
        if exact
        else fingerprint({"encoder": caches.encoder, "precision": spec.precision})
    )
    return storage._replace(cache=caches.cache, encoder=encoder)


def make_shared_front_end(
    caches: SharedCaches | None, spec: EvalSpec, encoder: Encoder, corpus: Corpus
) -> SharedFrontEnd | None:
    """Returns the front end that an encoder shares with others on a corpus; ``None`` for an encoder
    without one."""
    if caches is None or caches.front_end is None:
        return None
    prefix, shape = caches.front_end
    return SharedFrontEnd(caches.cache, encoder.module(), prefix, shape, corpus, spec.precision)


def _run_training_free(
    data: TrainingFreeTask,
    store: FeatureStore,
    utterances: Mapping[str, Sequence[Utterance]],
    seeds: int,
    advance: Advance,
) -> _Outcomes:
    """Predicts once; every seed gets the same numbers, since nothing is random."""
    features = load_features(store, utterances, advance)
    predictions = data.predict(features)
    references = {
        split: [example.reference for example in data.examples[split]] for split in utterances
    }
    dev = data.measure(predictions["dev"], references["dev"])
    if "test" not in utterances:
        return _Outcomes((), [dev] * seeds, [])
    test = data.measure_test(
        predictions["dev"], references["dev"], predictions["test"], references["test"]
    )
    return _Outcomes((), [dev] * seeds, [test] * seeds)


def _ignore(count: int) -> None:
    """Counts no work: it was counted before."""


class Progress:
    """Counts finished work and reports it, at most ``REPORTS`` times: a report may be sent to
    another machine."""

    def __init__(self, report: Report, total: int) -> None:
        self.report, self.total, self.done, self.last_reported = report, total, 0, 0

    def advance(self, count: int) -> None:
        """Adds finished work."""
        self.done += count
        if self.done == self.total or self.done - self.last_reported >= self.total / REPORTS:
            self.last_reported = self.done
            self.report({"done": self.done, "total": self.total})


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Limits torch to one thread inside, when the device is a CPU."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _make_scores(
    task: Task, dev: Sequence[Mapping[str, float]], test: Sequence[Mapping[str, float]]
) -> list[JsonValue]:
    splits: tuple[tuple[Literal["dev", "test"], Sequence[Mapping[str, float]]], ...] = (
        ("dev", dev),
        ("test", test),
    )
    return [
        Score(
            metric=metric, split=split, values=tuple(of_seed[metric] for of_seed in seeds)
        ).model_dump(mode="json")
        for metric in task.metrics
        for split, seeds in splits
        if seeds
    ]


def _count_utterances(data: TaskData | TrainingFreeTask, split: str) -> int:
    groups = data.alternatives if split == "train" and isinstance(data, TaskData) else None
    return len(data.examples[split] if groups is None else groups)


def _collect_details(
    task: Task, dev: Sequence[Mapping[str, float]], test: Sequence[Mapping[str, float]]
) -> dict[str, JsonValue]:
    """Returns what was measured beside the task's metrics, by split and name, one value per
    seed."""
    return {
        split: {
            name: [of_seed[name] for of_seed in seeds]
            for name in seeds[0]
            if name not in task.metrics
        }
        for split, seeds in (("dev", dev), ("test", test))
        if seeds
    }


def _layer_weights(trained: TrainedProbe) -> list[JsonValue]:
    shares = trained.probe.featurizer.weights.detach().double().softmax(0)
    return list(shares.tolist())
