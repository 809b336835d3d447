"""The dev metrics that choose the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from speechft_ray.core.metrics import metric
from speechft_ray.finetuning.batches import PART_SECONDS, Recordings, on_device
from speechft_ray.finetuning.learner import Learner
from speechft_ray.finetuning.lessons import Lesson
from speechft_ray.speech.batching import batches_by_seconds

MIXED = "finetune.accuracy"
"""Name of the mean when the objectives have different metrics."""


@torch.no_grad()
def dev_values(learner: Learner, lessons: Sequence[Lesson], recordings: Sequence[Recordings]) -> list[float]:
    """Returns each objective's dev metric in percent. Leaves the learner in training mode; draws nothing."""
    learner.train(False)
    try:
        return [_value(learner, index, lesson, recordings[index]) for index, lesson in enumerate(lessons)]
    finally:
        learner.train(True)


def overall(names: Sequence[str], values: Sequence[float]) -> tuple[str, float]:
    """Returns name and value of what is compared between validations: the mean over the objectives.

    Where accuracies and error rates meet, an error rate counts as 100 minus itself, so that higher is better for all.
    """
    if len(set(names)) == 1:
        return names[0], sum(values) / len(values)
    goodness = [value if metric(name).higher_is_better else 100.0 - value for name, value in zip(names, values, strict=True)]
    return MIXED, sum(goodness) / len(goodness)


def _value(learner: Learner, index: int, lesson: Lesson, recordings: Recordings) -> float:
    counted = total = 0
    for batch in batches_by_seconds([item.utterance.samples for item in lesson.dev], PART_SECONDS):
        examples = [lesson.dev[place] for place in batch]
        waves = on_device([recordings.read(item.utterance) for item in examples], learner.device)
        states, frames = learner.encoder.hidden_states(waves)
        logits = learner.heads[index](states[-1], frames)
        tally = lesson.kind.tally(logits, frames, [item.target for item in examples])
        counted, total = counted + tally.counted, total + tally.total
    return 100.0 * counted / max(1, total)
