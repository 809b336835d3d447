"""The counts behind the metrics of a test set, for the chosen probes of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import JsonValue

from speechft_ray.core.counts import UtteranceCounts
from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.superb.tasks.base import TaskData, TrainingFreeTask


def counted(
    data: TaskData | TrainingFreeTask,
    predictions: Sequence[Sequence[Any]],
    measured: Sequence[Mapping[str, float]],
) -> list[JsonValue]:
    """Returns one ``UtteranceCounts`` as plain data; none for a task without counts, or where test was not
    scored.

    ``predictions`` on test and what was ``measured`` there, both seed by seed.
    """
    if not isinstance(data, TaskData) or data.counts is None or not predictions:
        return []
    examples = data.examples["test"]
    wanted = [example.reference for example in examples]
    seeds = [
        data.counts(found, wanted, metrics)
        for found, metrics in zip(predictions, measured, strict=True)
    ]
    record = UtteranceCounts(
        utterances=fingerprint([example.utterance.key for example in examples]),
        amounts={
            name: tuple(tuple(amount for amount, _ in seed[name]) for seed in seeds)
            for name in seeds[0]
        },
        of={name: tuple(of for _, of in pairs) for name, pairs in seeds[0].items()},
    )
    return [record.model_dump(mode="json")]
