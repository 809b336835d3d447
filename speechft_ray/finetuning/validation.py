"""The dev metrics that choose the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from speechft_ray.core.metrics import metric
from speechft_ray.finetuning.batches import PART_SECONDS
from speechft_ray.finetuning.data import Lesson
from speechft_ray.finetuning.features import Listener, precision
from speechft_ray.finetuning.train_state import Learner
from speechft_ray.speech.batching import batch_by_seconds

MIXED = "finetune.accuracy"
"""Name of the mean when the objectives have different metrics."""


@torch.no_grad()
def dev_values(learner: Learner, lessons: Sequence[Lesson], listener: Listener) -> list[float]:
    """Returns each objective's dev metric in percent. Leaves the learner in training mode; draws
    nothing."""
    learner.train(False)
    try:
        return [_value(learner, index, lesson, listener) for index, lesson in enumerate(lessons)]
    finally:
        learner.train(True)


def overall(names: Sequence[str], values: Sequence[float]) -> tuple[str, float]:
    """Returns name and value of what is compared between validations: the mean over the objectives.

    Where accuracies and error rates meet, an error rate counts as 100 minus itself, so that higher
    is better for all.
    """
    if len(set(names)) == 1:
        return names[0], sum(values) / len(values)
    found = [goodness(name, value) for name, value in zip(names, values, strict=True)]
    return MIXED, sum(found) / len(found)


def goodness(name: str, value: float) -> float:
    """Returns a metric so that higher is better: an accuracy as it is, an error rate from 100."""
    return value if name == MIXED or metric(name).higher_is_better else 100.0 - value


def _value(learner: Learner, index: int, lesson: Lesson, listener: Listener) -> float:
    counted = total = 0
    for batch in batch_by_seconds([item.utterance.samples for item in lesson.dev], PART_SECONDS):
        examples = [lesson.dev[place] for place in batch]
        with precision(learner.device):
            sounds = [listener.read(index, item.utterance, None) for item in examples]
            masked = [item.masked for item in examples if item.masked is not None] or None
            states, frames = listener.states(sounds, masked)
            logits = learner.heads[index](states[-1], frames)
        tally = lesson.kind.tally(logits.float(), frames, [item.target for item in examples])
        counted, total = counted + tally.counted, total + tally.total
    return 100.0 * counted / max(1, total)
