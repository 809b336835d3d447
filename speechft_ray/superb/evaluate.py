"""One evaluation: a frozen encoder, one task, one corpus; a probe per seed; every metric of dev and test."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import torch
from pydantic import JsonValue

from speechft_ray.core.records import Score
from speechft_ray.core.specs import EvalSpec
from speechft_ray.speech.corpora.base import Corpus, Utterance
from speechft_ray.speech.encoders.base import Encoder
from speechft_ray.superb.features import Advance, Extractor, Kept, Reencoded, Source, sources
from speechft_ray.superb.probe import Schedule, Trained, score, train_probe
from speechft_ray.superb.tasks.base import TASKS, Problem, Task, task_columns, task_options, task_splits

Report = Callable[[Mapping[str, float]], None]
"""Called with ``{"done": .., "total": ..}``: utterances encoded and updates made, of all seeds."""

REPORTS = 200
"""Reports of one evaluation, at most."""


def evaluate(
    spec: EvalSpec, encoder: Encoder, corpus: Corpus, device: torch.device, report: Report, *, dev_only: bool = False
) -> dict[str, JsonValue]:
    """Trains the probes of an evaluation and returns its facts.

    ``scores``: a ``Score`` per metric and split, one value per seed, in percent. ``seeds``, ``learning_rate``, ``updates``,
    ``utterances`` by split, ``seconds`` by phase; per seed ``best_update`` and ``layer_weights`` (softmax). Test is encoded and
    scored once, by each seed's best probe on dev; with ``dev_only`` not at all, and dev is the same to the last digit. The
    encoder is left in eval mode on ``device``.

    On a CPU one torch thread is used, since the order of sums, and with it the last digits, depends on their number.
    Raises ``UserError`` for a column, split, label or option that does not fit the task.
    """
    task = TASKS.get(spec.task)
    problem = pose(task, spec, corpus)
    schedule = schedule_of(task, spec)
    seen = {split: items for split, items in problem.examples.items() if split != "test" or not dev_only}
    progress = Progress(report, sum(map(len, seen.values())) + spec.seeds * spec.updates)
    began = time.perf_counter()
    with one_thread(device):
        extract = Extractor(encoder, corpus, device, task.pooled)
        utterances = {split: [item.utterance for item in items] for split, items in seen.items()}
        kept = sources(extract, {split: utterances[split] for split in ("train", "dev")}, progress.advance)
        trained = [
            train_probe(problem, kept["train"], kept["dev"], schedule, seed, progress.advance) for seed in range(spec.seeds)
        ]
        tested: list[dict[str, float]] = []
        if not dev_only:
            unseen, tell = _unseen(extract, utterances["test"], progress.advance)
            tested = score(problem, [each.probe for each in trained], unseen, "test", tell)
    seconds = {"features": extract.seconds, "probe": time.perf_counter() - began - extract.seconds}
    return {
        "scores": _scores(task, [each.dev for each in trained], tested),
        "seeds": spec.seeds,
        "learning_rate": schedule.learning_rate,
        "updates": spec.updates,
        "best_update": [each.best_update for each in trained],
        "layer_weights": [_layer_weights(each) for each in trained],
        "utterances": {split: len(items) for split, items in seen.items()},
        "seconds": {phase: round(value, 3) for phase, value in seconds.items()},
    }


def pose(task: Task, spec: EvalSpec, corpus: Corpus) -> Problem:
    """Poses the task of an evaluation on its corpus. Raises ``UserError`` for whatever does not fit.

    Tasks that draw windows get the examples of each split with the longest targets first.
    """
    options = task_options(task, spec.options)
    columns = task_columns(task, spec.column, corpus)
    problem = task.pose(task_splits(corpus), columns, options)
    if task.draws != "windows":
        return problem
    longest_first = {
        split: sorted(examples, key=lambda example: -len(example.target)) for split, examples in problem.examples.items()
    }
    return replace(problem, examples=longest_first)


def schedule_of(task: Task, spec: EvalSpec) -> Schedule:
    """Returns how the probe is trained: what the spec says, else the task's own."""
    return Schedule(
        updates=spec.updates,
        validate_every_updates=spec.validate_every_updates or max(1, spec.updates // 10),
        learning_rate=spec.learning_rate or task.learning_rate,
        batch_size=spec.batch_size or task.batch_size,
        clip_norm=task.clip_norm,
        draws=task.draws,
        metric=task.metrics[0],
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
        if values
    ]


def _unseen(extract: Extractor, utterances: Sequence[Utterance], advance: Advance) -> tuple[Source, Advance]:
    """The test split, encoded once: means all at once, frame states while they are scored, so that memory stays small."""
    if extract.pooled:
        return Kept.of(extract, utterances, advance), lambda _: None
    return Reencoded(extract, utterances), advance


def _layer_weights(trained: Trained) -> list[JsonValue]:
    shares = trained.probe.featurizer.weights.detach().double().softmax(0)
    return list(shares.tolist())
