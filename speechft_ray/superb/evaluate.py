"""One evaluation: a frozen encoder, one task, one corpus; a probe per seed; every metric of dev and
test."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import JsonValue

from speechft_ray.core.curves import POINT, name_probe_values
from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.core.specs import EvalSpec
from speechft_ray.speech.corpora.base import Corpus, Utterance
from speechft_ray.speech.encoders.base import Encoder, Shape
from speechft_ray.speech.features.cache import FeatureCache
from speechft_ray.speech.features.front_end import SharedFrontEnd
from speechft_ray.speech.precision import encode_in, use_float32_products
from speechft_ray.superb.curve import ProbeCurve
from speechft_ray.superb.extractor import Advance, Extractor, PrecomputedFeatures
from speechft_ray.superb.facts import Outcomes, count_utterances, make_facts
from speechft_ray.superb.feature_store import (
    IN_MEMORY,
    FeatureStorage,
    FeatureStore,
)
from speechft_ray.superb.interpolation import FeatureSource, measure_error
from speechft_ray.superb.probe import Schedule
from speechft_ray.superb.saved_work import STATE_VERSION, SavedWork
from speechft_ray.superb.selection import list_references, predict
from speechft_ray.superb.setup import build_task_data, make_schedule, select_learning_rates
from speechft_ray.superb.stacked import train_stacked
from speechft_ray.superb.storage_facts import describe_storage
from speechft_ray.superb.tasks.base import (
    TASKS,
    Example,
    TaskData,
    TrainingFreeTask,
    list_utterances,
)
from speechft_ray.superb.training import train_probes

Report = Callable[[Mapping[str, float]], None]
"""Called with ``{"done": .., "total": ..}``: utterances encoded and updates made, of all seeds
(``_count_work``)."""

REPORTS = 200
"""Reports of one evaluation, at most, besides the points of its curve."""


class WeightedEncoder(NamedTuple):
    """An encoder whose features others are predicted from."""

    weight: float
    """Of its features (``superb.interpolation.compute_weights``)."""
    encoder: Encoder
    caches: SharedCaches | None


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
    work: Path | None = None,
    pause_at: int | None = None,
    predicted_from: Sequence[WeightedEncoder] = (),
    compared_with: Sequence[WeightedEncoder] = (),
) -> dict[str, JsonValue]:
    """Trains the probes of an evaluation and returns its facts.

    ``scores``: a ``Score`` per metric and split, one value per seed, in the metric's unit, at the
    learning rate with the best mean on dev. ``counts``: what the metrics of test, or with
    ``dev_only`` of dev, are made of (``superb.counts``), to be stored beside the facts.
    ``details``: what else was measured, such as the layer or the threshold that dev selected.
    ``seeds``, ``learning_rate`` (the selected one), ``updates``, ``utterances`` and ``skipped``
    recordings by split, ``seconds`` by phase,
    ``encoded_seconds`` of audio that went through the encoder (less with a cache); per seed
    ``best_update`` and ``layer_weights`` (softmax). With several rates, ``grid`` has every rate and
    seed with its metrics. ``curve`` is the learning curve (``superb.curve``). Test is encoded and
    scored once, by each probe at its best validation on dev; with ``dev_only`` not at all, and dev
    is the same to the last digit. ``precomputed`` holds means that need not be computed. The
    encoder is left in eval mode on ``device``. ``work``: an existing folder for the saved states of
    an unfinished evaluation; on a CPU the scores are the same to the bit, however often it was
    interrupted. ``pause_at``: the update at which training pauses; the scores are those by then,
    and the state in ``work`` goes on from there in a later call. ``predicted_from``: the probes are
    trained on features that are interpolated between those of these encoders, not on those of
    ``encoder``. ``compared_with``: the features of dev are compared with such ones, and
    ``feature_error`` is the error by layer (``superb.interpolation.measure_error``).

    On a CPU one torch thread is used, since the order of sums, and with it the last digits, depends
    on their number. Raises ``UserError`` for a column, split, label or option that does not fit the
    task, and ``ValueError`` for a pause of a task without training.
    """
    # Build the task on the corpus, and count the work.
    task = TASKS.get(spec.task)
    data = build_task_data(task, spec, corpus)
    if pause_at is not None and not task.trains:
        raise ValueError(f"the task `{task.name}` makes no updates, so it cannot pause at one")
    schedule = replace(make_schedule(task, spec), pause_at=pause_at)
    rates = select_learning_rates(task, spec)
    examples = {
        split: items for split, items in data.examples.items() if split != "test" or not dev_only
    }
    updates, encoders = spec.seeds * len(rates) * schedule.stop, len(predicted_from)
    progress = Progress(report, _count_work(data, updates, examples, encoders))
    saved_work = SavedWork(work, _identify(spec, corpus, caches, dev_only))
    curve = ProbeCurve(spec.updates, spec.seeds, schedule.metric, progress.show_point)
    # Encode, train and score: one outcome per learning rate and seed.
    began = time.perf_counter()
    with one_thread(device), use_float32_products("float32", device):
        utterances = {split: list_utterances(items) for split, items in examples.items()}
        own = [WeightedEncoder(1.0, encoder, caches)]
        opener = FeatureOpener(spec, data.corpus, device, task.pooled, utterances, precomputed)
        source = opener.open(predicted_from or own)
        if isinstance(data, TrainingFreeTask):
            outcomes = _run_training_free(
                data, source, utterances, spec.seeds, progress.advance, saved_work
            )
        else:
            training = Training(schedule, rates, spec.seeds, saved_work, curve)
            outcomes = _train_and_test(data, source, utterances, training, progress.advance)
        feature_error = opener.compare(source, compared_with) if compared_with else []
    facts = make_facts(task, data, spec, rates, outcomes)
    if pause_at is not None:
        facts["pause_at"] = schedule.stop
    if curve.points:
        facts["curve"] = curve.points
    facts["utterances"] = {split: count_utterances(data, split) for split in examples}
    facts["skipped"] = dict(corpus.skipped)
    if feature_error:
        facts["feature_error"] = feature_error
    return facts | _describe_features(source, time.perf_counter() - began)


def _describe_features(source: FeatureSource, seconds: float) -> dict[str, JsonValue]:
    """Returns what encoding took of an evaluation of so many seconds, and how features were
    stored."""
    parts = {"features": source.seconds, "probe": seconds - source.seconds}
    return {
        "seconds": {phase: round(value, 3) for phase, value in parts.items()},
        "encoded_seconds": round(source.encoded_seconds, 1),
        **describe_storage(source.stores[0][1]),
    }


class FeatureOpener(NamedTuple):
    """Opens the features of an evaluation, for one encoder or another."""

    spec: EvalSpec
    corpus: Corpus
    device: torch.device
    pooled: bool
    utterances: Mapping[str, Sequence[Utterance]]
    precomputed: PrecomputedFeatures | None

    def open(self, encoders: Sequence[WeightedEncoder]) -> FeatureSource:
        """Returns the features of one encoder, or those interpolated between several, which then
        share the memory."""
        stores = []
        for weight, encoder, caches in encoders:
            # Precomputed means need no front end.
            caches_needed = None if self.precomputed else caches
            front_end = make_shared_front_end(caches_needed, self.spec, encoder, self.corpus)
            precise = encode_in(self.spec.precision, encoder, self.device)
            extractor = Extractor(
                precise, self.corpus, self.device, self.pooled, front_end, self.precomputed
            )
            storage = make_storage(caches, self.spec)
            storage = storage._replace(memory_bytes=storage.memory_bytes // len(encoders))
            stores.append((weight, FeatureStore(extractor, self.utterances, storage)))
        return FeatureSource(stores)

    def compare(
        self, source: FeatureSource, encoders: Sequence[WeightedEncoder]
    ) -> list[JsonValue]:
        """Returns the error by layer of the features of dev that are predicted from encoders."""
        dev = {"dev": self.utterances["dev"]}
        real, predicted = source.load(dev, _ignore), self.open(encoders).load(dev, _ignore)
        return list(measure_error(real["dev"], predicted["dev"]))


def _count_work(
    data: TaskData | TrainingFreeTask,
    updates: int,
    examples: Mapping[str, Sequence[Example]],
    encoders: int,
) -> int:
    """Returns the utterances to encode, for each of several encoders, and the updates of all
    probes; for a task without training, the examples of train for each other split."""
    encoded = sum(map(len, examples.values())) * max(1, encoders)
    if isinstance(data, TaskData):
        return encoded + updates
    return encoded + len(examples["train"]) * (len(examples) - 1)


def _identify(spec: EvalSpec, corpus: Corpus, caches: SharedCaches | None, dev_only: bool) -> str:
    """Returns the fingerprint of everything that a saved state must agree with."""
    encoder = caches.encoder if caches else ""
    return fingerprint([STATE_VERSION, spec.identity(), corpus.fingerprint, encoder, dev_only])


class Training(NamedTuple):
    """How the probes of an evaluation are trained, and what goes along."""

    schedule: Schedule
    rates: Sequence[float]
    seeds: int
    work: SavedWork
    curve: ProbeCurve


def _train_and_test(
    data: TaskData,
    source: FeatureSource,
    utterances: Mapping[str, Sequence[Utterance]],
    training: Training,
    advance: Advance,
) -> Outcomes:
    schedule, rates, seeds, work, curve = training
    # Encode train and dev.
    splits = {split: utterances[split] for split in ("train", "dev")}
    features = source.load(splits, advance)
    train, dev = features["train"], features["dev"]
    # Train a probe for every rate and seed: stacked if the head allows it.
    if data.pooled_head is not None:
        by_rate = train_stacked(data, train, dev, schedule, rates, seeds, advance, work, curve)
        trained = [probe for of_rate in by_rate for probe in of_rate]
    else:
        rates_and_seeds = [(rate, seed) for rate in rates for seed in range(seeds)]
        trained = train_probes(data, train, dev, schedule, rates_and_seeds, 0, advance, work, curve)
    dev_metrics = [each.dev for each in trained]
    if "test" not in utterances:
        return Outcomes(trained, dev_metrics, [])
    del features, train, dev  # frees what they hold in memory
    # Score all probes on test, which is encoded once for all of them. Means are read as a whole,
    # frame states while they are scored, so that memory stays small.
    if source.pooled:
        test = source.load({"test": utterances["test"]}, advance)["test"]
    else:
        test = source.open(utterances["test"], advance)
    advance_test = advance if test.location == "recomputed" else _ignore
    predictions = predict(data, [each.probe for each in trained], test, advance_test)
    dev_references, references = list_references(data, "dev"), list_references(data, "test")
    test_metrics = [
        data.compute_test_metrics(each.dev_predictions, dev_references, of_probe, references)
        for each, of_probe in zip(trained, predictions, strict=True)
    ]
    return Outcomes(trained, dev_metrics, test_metrics, predictions)


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
    source: FeatureSource,
    utterances: Mapping[str, Sequence[Utterance]],
    seeds: int,
    advance: Advance,
    work: SavedWork,
) -> Outcomes:
    """Predicts once; every seed gets the same numbers, since nothing is random."""
    features = source.load(utterances, advance)
    predictions = data.predict(features, work, advance)
    references = {
        split: [example.reference for example in data.examples[split]] for split in utterances
    }
    dev = data.measure(predictions["dev"], references["dev"])
    if "test" not in utterances:
        return Outcomes((), [dev] * seeds, [])
    test = data.measure_test(
        predictions["dev"], references["dev"], predictions["test"], references["test"]
    )
    return Outcomes((), [dev] * seeds, [test] * seeds)


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

    def show_point(self, update: int, values: Mapping[str, float]) -> None:
        """Reports a point of the learning curve."""
        named = name_probe_values(values)
        self.report({"done": self.done, "total": self.total, POINT: update, **named})


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
