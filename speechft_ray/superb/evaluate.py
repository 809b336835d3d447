"""One evaluation: a frozen encoder, one task, one corpus; a probe per seed; every metric of dev and test."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from pydantic import JsonValue

from speechft_ray.core.records import Score
from speechft_ray.core.specs import EvalSpec
from speechft_ray.speech.corpora.base import Corpus, Utterance
from speechft_ray.speech.encoders.base import Encoder
from speechft_ray.superb.features import Advance, Extractor, Kept, Reencoded, Source, sources
from speechft_ray.superb.probe import Schedule, Trained, answers, references, train_probe
from speechft_ray.superb.tasks.base import TASKS, Problem, Search, Task, task_columns, task_options

Report = Callable[[Mapping[str, float]], None]
"""Called with ``{"done": .., "total": ..}``: utterances encoded and updates made, of all seeds."""

REPORTS = 200
"""Reports of one evaluation, at most."""


def evaluate(spec: EvalSpec, encoder: Encoder, corpus: Corpus, device: torch.device, report: Report) -> dict[str, JsonValue]:
    """Trains the probes of an evaluation and returns its facts.

    ``scores``: a ``Score`` per metric and split, one value per seed, in the metric's unit. ``details``: what else was measured,
    such as the layer or the threshold that dev chose. ``seeds``, ``learning_rate``, ``updates``,
    ``utterances`` by split, ``seconds`` by phase; per seed ``best_update`` and ``layer_weights`` (softmax). Test is encoded and
    scored once, by each seed's best probe on dev. The encoder is left in eval mode on ``device``.

    On a CPU one torch thread is used, since the order of sums, and with it the last digits, depends on their number.
    Raises ``UserError`` for a column, split, label or option that does not fit the task.
    """
    task = TASKS.get(spec.task)
    problem = pose(task, spec, corpus)
    schedule = schedule_of(task, spec)
    learned = isinstance(problem, Problem)
    progress = Progress(report, sum(map(len, problem.examples.values())) + learned * spec.seeds * spec.updates)
    began = time.perf_counter()
    with one_thread(device):
        extract = Extractor(encoder, problem.corpus, device, task.pooled)
        if isinstance(problem, Search):
            found = _searched(problem, extract, spec.seeds, progress.advance)
        else:
            found = _learned(problem, extract, schedule, spec.seeds, progress.advance)
    seconds = {"features": extract.seconds, "probe": time.perf_counter() - began - extract.seconds}
    return {
        "scores": _scores(task, found.dev, found.test),
        "details": _details(task, found.dev, found.test),
        "seeds": spec.seeds,
        "learning_rate": schedule.learning_rate,
        "updates": spec.updates,
        "best_update": [each.best_update for each in found.trained],
        "layer_weights": [_layer_weights(each) for each in found.trained],
        "utterances": {split: len(items) for split, items in problem.examples.items()},
        "seconds": {phase: round(value, 3) for phase, value in seconds.items()},
    }


class _Found(NamedTuple):
    """What an evaluation measured, by seed; ``trained`` is empty for a task without training."""

    trained: Sequence[Trained]
    dev: Sequence[Mapping[str, float]]
    test: Sequence[Mapping[str, float]]


def _learned(problem: Problem, extract: Extractor, schedule: Schedule, seeds: int, advance: Advance) -> _Found:
    utterances = _utterances(problem)
    kept = sources(extract, {split: utterances[split] for split in ("train", "dev")}, advance)
    trained = [train_probe(problem, kept["train"], kept["dev"], schedule, seed, advance) for seed in range(seeds)]
    unseen, tell = _unseen(extract, utterances["test"], advance)
    tested = answers(problem, [each.probe for each in trained], unseen, tell)
    wanted = {split: references(problem, split) for split in ("dev", "test")}
    test = [
        problem.measured_test(each.answers, wanted["dev"], found, wanted["test"])
        for each, found in zip(trained, tested, strict=True)
    ]
    return _Found(trained, [each.dev for each in trained], test)


def _searched(problem: Search, extract: Extractor, seeds: int, advance: Advance) -> _Found:
    """Searches once; every seed gets the same numbers, since nothing is drawn."""
    found = problem.answers(sources(extract, _utterances(problem), advance))
    wanted = {split: [example.reference for example in problem.examples[split]] for split in ("dev", "test")}
    dev = problem.measure(found["dev"], wanted["dev"])
    test = problem.measure_test(found["dev"], wanted["dev"], found["test"], wanted["test"])
    return _Found((), [dev] * seeds, [test] * seeds)


def _utterances(problem: Problem | Search) -> dict[str, list[Utterance]]:
    return {split: [example.utterance for example in examples] for split, examples in problem.examples.items()}


def pose(task: Task, spec: EvalSpec, corpus: Corpus) -> Problem | Search:
    """Poses the task of an evaluation on its corpus. Raises ``UserError`` for whatever does not fit.

    Tasks that draw windows get the examples of each split with the longest targets first.
    """
    options = task_options(task, spec.options)
    columns = task_columns(task, spec.column, corpus)
    problem = task.pose(corpus, columns, options)
    if task.draws != "windows":
        return problem
    longest_first = {
        split: sorted(examples, key=lambda example: -len(example.target)) for split, examples in problem.examples.items()
    }
    return replace(problem, examples=longest_first)


def schedule_of(task: Task, spec: EvalSpec) -> Schedule:
    """Returns how the probe is trained: what the spec says, else the task's own.

    A batch size of the spec is one batch; the task's own may come in several parts.
    """
    return Schedule(
        updates=spec.updates,
        validate_every_updates=spec.validate_every_updates or max(1, spec.updates // 10),
        learning_rate=spec.learning_rate or task.learning_rate,
        batch_size=spec.batch_size or task.batch_size // task.accumulate,
        clip_norm=task.clip_norm,
        draws=task.draws,
        metric=task.metrics[0],
        accumulate=1 if spec.batch_size else task.accumulate,
        weight_decay=task.weight_decay,
    )


class Progress:
    """Counts work done and reports it, at most ``REPORTS`` times: a report may travel to another machine."""

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


def _scores(task: Task, dev: Sequence[Mapping[str, float]], test: Sequence[Mapping[str, float]]) -> list[JsonValue]:
    measured: tuple[tuple[Literal["dev", "test"], Sequence[Mapping[str, float]]], ...] = (("dev", dev), ("test", test))
    return [
        Score(metric=metric, split=split, values=tuple(found[metric] for found in values)).model_dump(mode="json")
        for metric in task.metrics
        for split, values in measured
    ]


def _details(task: Task, dev: Sequence[Mapping[str, float]], test: Sequence[Mapping[str, float]]) -> dict[str, JsonValue]:
    """What was measured beside the task's metrics, by split and name, one value per seed."""
    return {
        split: {name: [found[name] for found in values] for name in values[0] if name not in task.metrics}
        for split, values in (("dev", dev), ("test", test))
    }


def _unseen(extract: Extractor, utterances: Sequence[Utterance], advance: Advance) -> tuple[Source, Advance]:
    """The test split, encoded once: means all at once, frame states while they are scored, so that memory stays small."""
    if extract.pooled:
        return Kept.of(extract, utterances, advance), lambda _: None
    return Reencoded(extract, utterances), advance


def _layer_weights(trained: Trained) -> list[JsonValue]:
    shares = trained.probe.featurizer.weights.detach().double().softmax(0)
    return list(shares.tolist())
