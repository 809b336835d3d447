"""The facts of an evaluation: its scores, and how they came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Literal, NamedTuple

from pydantic import JsonValue

from speechft_ray.core.errors import UserError
from speechft_ray.core.metrics import is_better
from speechft_ray.core.records import Score
from speechft_ray.core.specs import EvalSpec
from speechft_ray.superb.counts import count_utterances_of
from speechft_ray.superb.probe import TrainedProbe
from speechft_ray.superb.tasks.base import Task, TaskData, TrainingFreeTask


class Outcomes(NamedTuple):
    """What an evaluation measured, rate by rate and seed by seed. ``trained`` and ``predictions``,
    those on test, are empty for a task without training."""

    trained: Sequence[TrainedProbe]
    dev: Sequence[Mapping[str, float]]
    test: Sequence[Mapping[str, float]]
    predictions: Sequence[Sequence[Any]] = ()


def make_facts(
    task: Task,
    data: TaskData | TrainingFreeTask,
    spec: EvalSpec,
    rates: Sequence[float],
    outcomes: Outcomes,
) -> dict[str, JsonValue]:
    """Returns the facts that follow from the outcomes: those of all seeds at the learning rate that
    is best on dev. Raises ``UserError`` where a probe diverged at that rate."""
    selected = _select_rate(task.metrics[0], outcomes, spec.seeds)
    seeds = slice(selected * spec.seeds, (selected + 1) * spec.seeds)
    _check_divergence(spec, rates[selected], outcomes.trained[seeds])
    dev, test, trained = outcomes.dev[seeds], outcomes.test[seeds], outcomes.trained[seeds]
    on_dev = [each.dev_predictions for each in trained]
    counts = (
        count_utterances_of(data, "test", outcomes.predictions[seeds], test)
        if test
        else count_utterances_of(data, "dev", on_dev, dev)
    )
    facts: dict[str, JsonValue] = {
        "scores": _make_scores(task, dev, test),
        "counts": counts,
        "details": _collect_details(task, dev, test),
        "seeds": spec.seeds,
        "learning_rate": rates[selected],
        "updates": spec.updates,
        "best_update": [each.best_update for each in trained],
        "layer_weights": [_layer_weights(each) for each in trained],
    }
    if spec.patience is not None:
        facts["last_update"] = [each.last_update for each in trained]
    if len(rates) > 1 and outcomes.trained:
        facts["grid"] = _make_grid(rates, spec, outcomes)
    return facts


def _check_divergence(spec: EvalSpec, rate: float, trained: Sequence[TrainedProbe]) -> None:
    for seed, probe in enumerate(trained):
        if probe.has_diverged:
            raise UserError(
                f"the probe of `{spec.task}` with seed {seed} diverged at the learning rate "
                f"{rate:g}: its loss or gradient was not finite in {probe.skipped} of "
                f"{probe.last_update} updates. Lower `learning_rate` of this task, or look for "
                "damaged recordings or an encoder whose states are not finite."
            )


def _select_rate(metric: str, outcomes: Outcomes, seeds: int) -> int:
    """Returns the index of the rate with the best mean over seeds on dev, the first of equals;
    rates at which a probe diverged only where no other is left."""
    starts = range(0, len(outcomes.dev), seeds)
    means = [
        fmean(metrics[metric] for metrics in outcomes.dev[start : start + seeds])
        for start in starts
    ]
    diverged = [
        any(probe.has_diverged for probe in outcomes.trained[start : start + seeds])
        for start in starts
    ]
    best = 0
    for index, value in enumerate(means):
        is_preferred = diverged[best] and not diverged[index]
        if is_preferred or (
            diverged[index] <= diverged[best] and is_better(metric, value, means[best])
        ):
            best = index
    return best


def _make_grid(rates: Sequence[float], spec: EvalSpec, outcomes: Outcomes) -> list[JsonValue]:
    return [
        {
            "learning_rate": rates[index // spec.seeds],
            "seed": index % spec.seeds,
            "best_update": probe.best_update,
            **({} if spec.patience is None else {"last_update": probe.last_update}),
            "dev": dict(dev),
            "test": dict(outcomes.test[index]) if outcomes.test else None,
        }
        for index, (probe, dev) in enumerate(zip(outcomes.trained, outcomes.dev, strict=True))
    ]


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


def count_utterances(data: TaskData | TrainingFreeTask, split: str) -> int:
    """Returns the utterances of a split; the crops of one count as one."""
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
