"""One evaluation: a frozen encoder, one task, one corpus; a probe per seed; every metric of dev and
test."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Literal, NamedTuple

import torch
from pydantic import JsonValue

from speechft_ray.core.metrics import is_better
from speechft_ray.core.records import Score
from speechft_ray.core.specs import EvalSpec
from speechft_ray.speech.corpora.base import Corpus, Utterance
from speechft_ray.speech.encoders.base import Encoder, Shape
from speechft_ray.speech.features.cache import FeatureCache
from speechft_ray.speech.features.front_end import SharedFrontEnd
from speechft_ray.superb.counts import counted
from speechft_ray.superb.features import (
    IN_MEMORY,
    Advance,
    Extractor,
    Features,
    FeatureStorage,
    OnTheFlyFeatures,
    PrecomputedFeatures,
    prepare_features,
)
from speechft_ray.superb.probe import Schedule, TrainedProbe, predict, references, train_probes
from speechft_ray.superb.stacked import train_stacked
from speechft_ray.superb.tasks.base import (
    TASKS,
    Example,
    Task,
    TaskData,
    TrainingFreeTask,
    check_task_options,
    select_columns,
)

Report = Callable[[Mapping[str, float]], None]
"""Called with ``{"done": .., "total": ..}``: utterances encoded and updates made, of all seeds."""

REPORTS = 200
"""Reports of one evaluation, at most."""


GRID = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""Learning rates of ``learning_rate: grid``: SUPERB's authors explored five per encoder and task,
on a log scale from 1e-1 down (s3prl issues 120 and 498)."""


@dataclass(frozen=True, kw_only=True)
class SharedCaches:
    """What an evaluation may take from others and leave for them.

    ``cache``: features on disk. ``encoder``: the encoder's fingerprint. ``front_end``: prefix of
    its front end's parameters and its shape; ``None`` for an encoder without one.
    """

    cache: FeatureCache
    encoder: str
    front_end: tuple[str, Shape] | None


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
    learning rate with the best mean on dev. ``counts``: what makes those of test
    (``superb.counts``), to be kept beside the facts. ``details``: what else was measured, such as
    the layer or the threshold that dev chose. ``seeds``, ``learning_rate`` (the chosen one),
    ``updates``, ``utterances`` and ``skipped`` recordings by split, ``seconds`` by phase; per seed
    ``best_update`` and ``layer_weights`` (softmax). With several rates, ``grid`` has every rate and
    seed with its metrics. Test is encoded and scored once, by each probe at its best validation on
    dev; with ``dev_only`` not at all, and dev is the same to the last digit. ``precomputed`` holds means
    that need not be computed. The encoder is left in eval mode on ``device``.

    On a CPU one torch thread is used, since the order of sums, and with it the last digits, depends
    on their number. Raises ``UserError`` for a column, split, label or option that does not fit the
    task.
    """
    task = TASKS.get(spec.task)
    data = build_task_data(task, spec, corpus)
    schedule, rates = make_schedule(task, spec), select_learning_rates(task, spec)
    heads = spec.seeds * len(rates) if isinstance(data, TaskData) else 0
    seen = {
        split: items for split, items in data.examples.items() if split != "test" or not dev_only
    }
    progress = Progress(report, sum(map(len, seen.values())) + heads * spec.updates)
    began = time.perf_counter()
    with one_thread(device):
        front_ends = make_front_ends(caches, encoder, data.corpus)
        extract = Extractor(encoder, data.corpus, device, task.pooled, front_ends, precomputed)
        storage = make_storage(caches)
        if isinstance(data, TrainingFreeTask):
            found = _run_training_free(data, extract, seen, spec.seeds, progress.advance, storage)
        else:
            found = _train_and_test(
                data, extract, seen, schedule, rates, spec.seeds, progress.advance, storage
            )
    seconds = {"features": extract.seconds, "probe": time.perf_counter() - began - extract.seconds}
    chosen = _best_rate(schedule.metric, found.dev, spec.seeds)
    mine = slice(chosen * spec.seeds, (chosen + 1) * spec.seeds)
    facts: dict[str, JsonValue] = {
        "scores": _scores(task, found.dev[mine], found.test[mine]),
        "counts": counted(data, found.predictions[mine], found.test[mine]),
        "details": _details(task, found.dev[mine], found.test[mine]),
        "seeds": spec.seeds,
        "learning_rate": rates[chosen],
        "updates": spec.updates,
        "best_update": [each.best_update for each in found.trained[mine]],
        "layer_weights": [_layer_weights(each) for each in found.trained[mine]],
        "utterances": {split: _utterance_count(data, split) for split in seen},
        "skipped": dict(corpus.skipped),
        "seconds": {phase: round(value, 3) for phase, value in seconds.items()},
    }
    return (
        facts
        if len(rates) == 1 or not found.trained
        else {**facts, "grid": _grid(rates, spec.seeds, found)}
    )


class _Found(NamedTuple):
    """What an evaluation measured, rate by rate and seed by seed; ``trained`` and ``predictions``,
    those on test, are empty for a task without training."""

    trained: Sequence[TrainedProbe]
    dev: Sequence[Mapping[str, float]]
    test: Sequence[Mapping[str, float]]
    predictions: Sequence[Sequence[Any]] = ()


def _train_and_test(
    data: TaskData,
    extract: Extractor,
    seen: Mapping[str, Sequence[Example]],
    schedule: Schedule,
    rates: Sequence[float],
    seeds: int,
    advance: Advance,
    storage: FeatureStorage,
) -> _Found:
    utterances = _utterances(seen)
    kept = prepare_features(
        extract, {split: utterances[split] for split in ("train", "dev")}, advance, storage
    )
    if data.pooled_head is not None:
        by_rate = train_stacked(data, kept["train"], kept["dev"], schedule, rates, seeds, advance)
        trained = [one for of_rate in by_rate for one in of_rate]
    else:
        kinds = [(rate, seed) for rate in rates for seed in range(seeds)]
        trained = train_probes(data, kept["train"], kept["dev"], schedule, kinds, 0, advance)
    if "test" not in seen:
        return _Found(trained, [each.dev for each in trained], [])
    with _test_features(extract, utterances["test"], advance, storage) as (unseen, tell):
        tested = predict(data, [each.probe for each in trained], unseen, tell)
    wanted = {split: references(data, split) for split in ("dev", "test")}
    test = [
        data.compute_test_metrics(each.dev_predictions, wanted["dev"], found, wanted["test"])
        for each, found in zip(trained, tested, strict=True)
    ]
    return _Found(trained, [each.dev for each in trained], test, tested)


def select_learning_rates(task: Task, spec: EvalSpec) -> list[float]:
    """Returns the learning rates to train with, each once."""
    given = spec.learning_rate
    if given is None:
        return [task.learning_rate]
    return list(
        dict.fromkeys(
            GRID if given == "grid" else given if isinstance(given, tuple) else [float(given)]
        )
    )


def _best_rate(metric: str, dev: Sequence[Mapping[str, float]], seeds: int) -> int:
    """Returns the place of the rate with the best mean over seeds on dev, the first of equals."""
    means = [
        fmean(found[metric] for found in dev[start : start + seeds])
        for start in range(0, len(dev), seeds)
    ]
    best = 0
    for place, value in enumerate(means):
        if is_better(metric, value, means[best]):
            best = place
    return best


def _grid(rates: Sequence[float], seeds: int, found: _Found) -> list[JsonValue]:
    return [
        {
            "learning_rate": rates[place // seeds],
            "seed": place % seeds,
            "best_update": one.best_update,
            "dev": dict(dev),
            "test": dict(found.test[place]) if found.test else None,
        }
        for place, (one, dev) in enumerate(zip(found.trained, found.dev, strict=True))
    ]


def make_storage(caches: SharedCaches | None) -> FeatureStorage:
    """Where features may lie."""
    return FeatureStorage(cache=caches.cache, encoder=caches.encoder) if caches else IN_MEMORY


def make_front_ends(
    caches: SharedCaches | None, encoder: Encoder, corpus: Corpus
) -> SharedFrontEnd | None:
    """The front end that an encoder shares with others on a corpus, where it has one."""
    if caches is None or caches.front_end is None:
        return None
    prefix, shape = caches.front_end
    return SharedFrontEnd(caches.cache, encoder.module(), prefix, shape, corpus)


def _run_training_free(
    data: TrainingFreeTask,
    extract: Extractor,
    seen: Mapping[str, Sequence[Example]],
    seeds: int,
    advance: Advance,
    storage: FeatureStorage,
) -> _Found:
    """Searches once; every seed gets the same numbers, since nothing is drawn."""
    found = data.predict(prepare_features(extract, _utterances(seen), advance, storage))
    wanted = {
        split: [example.reference for example in examples] for split, examples in seen.items()
    }
    dev = data.measure(found["dev"], wanted["dev"])
    if "test" not in seen:
        return _Found((), [dev] * seeds, [])
    test = data.measure_test(found["dev"], wanted["dev"], found["test"], wanted["test"])
    return _Found((), [dev] * seeds, [test] * seeds)


def _utterances(seen: Mapping[str, Sequence[Example]]) -> dict[str, list[Utterance]]:
    return {split: [example.utterance for example in examples] for split, examples in seen.items()}


def build_task_data(task: Task, spec: EvalSpec, corpus: Corpus) -> TaskData | TrainingFreeTask:
    """Poses the task of an evaluation on its corpus. Raises ``UserError`` for whatever does not
    fit.

    Tasks that draw windows get the examples of each split with the longest targets first.
    """
    options = check_task_options(task, spec.options)
    columns = select_columns(task, spec.column, corpus)
    data = task.build(corpus, columns, options)
    if task.sampling != "windows":
        return data
    longest_first = {
        split: sorted(examples, key=lambda example: -len(example.target))
        for split, examples in data.examples.items()
    }
    return replace(data, examples=longest_first)


def make_schedule(task: Task, spec: EvalSpec) -> Schedule:
    """Returns how the probe is trained: what the spec says, else the task's own.

    A batch size of the spec is one batch; the task's own may come in several parts. Of several
    rates, it has the first.
    """
    return Schedule(
        updates=spec.updates,
        validate_every_updates=spec.validate_every_updates or max(1, spec.updates // 10),
        learning_rate=select_learning_rates(task, spec)[0],
        batch_size=spec.batch_size or task.batch_size // task.accumulate,
        clip_norm=task.clip_norm,
        sampling=task.sampling,
        metric=task.metrics[0],
        accumulate=1 if spec.batch_size else task.accumulate,
        weight_decay=task.weight_decay,
    )


class Progress:
    """Counts work done and reports it, at most ``REPORTS`` times: a report may travel to another
    machine."""

    def __init__(self, report: Report, total: int) -> None:
        self.report, self.total, self.done, self.told = report, total, 0, 0

    def advance(self, count: int) -> None:
        """Adds finished work."""
        self.done += count
        if self.done == self.total or self.done - self.told >= self.total / REPORTS:
            self.told = self.done
            self.report({"done": self.done, "total": self.total})


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Lets torch use one thread inside, when the device is a CPU."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _scores(
    task: Task, dev: Sequence[Mapping[str, float]], test: Sequence[Mapping[str, float]]
) -> list[JsonValue]:
    measured: tuple[tuple[Literal["dev", "test"], Sequence[Mapping[str, float]]], ...] = (
        ("dev", dev),
        ("test", test),
    )
    return [
        Score(
            metric=metric, split=split, values=tuple(found[metric] for found in values)
        ).model_dump(mode="json")
        for metric in task.metrics
        for split, values in measured
        if values
    ]


def _utterance_count(data: TaskData | TrainingFreeTask, split: str) -> int:
    groups = data.alternatives if split == "train" and isinstance(data, TaskData) else None
    return len(data.examples[split] if groups is None else groups)


def _details(
    task: Task, dev: Sequence[Mapping[str, float]], test: Sequence[Mapping[str, float]]
) -> dict[str, JsonValue]:
    """What was measured beside the task's metrics, by split and name, one value per seed."""
    return {
        split: {
            name: [found[name] for found in values]
            for name in values[0]
            if name not in task.metrics
        }
        for split, values in (("dev", dev), ("test", test))
        if values
    }


@contextmanager
def _test_features(
    extract: Extractor, utterances: Sequence[Utterance], advance: Advance, storage: FeatureStorage
) -> Iterator[tuple[Features, Advance]]:
    """The test split, encoded once: means all at once, frame states while they are scored, so that
    memory stays small."""
    if extract.pooled:
        yield (
            prepare_features(extract, {"test": utterances}, advance, storage)["test"],
            lambda _: None,
        )
    else:
        with extract.share_front_end(utterances) as within:
            yield OnTheFlyFeatures(extract, utterances, within), advance


def _layer_weights(trained: TrainedProbe) -> list[JsonValue]:
    shares = trained.probe.featurizer.weights.detach().double().softmax(0)
    return list(shares.tolist())
