"""Dev metrics, which select the best checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import torch

from speechft_ray.core.metrics import metric
from speechft_ray.finetuning.batches import MICRO_BATCH_SECONDS
from speechft_ray.finetuning.data import ObjectiveData
from speechft_ray.finetuning.features import FeatureLoader
from speechft_ray.finetuning.train_state import TrainState
from speechft_ray.speech.batching import batch_by_seconds
from speechft_ray.speech.heads.base import IGNORED
from speechft_ray.speech.precision import autocast_products

MIXED = "finetune.accuracy"
"""Name of the mean when the objectives have different metrics."""


@torch.no_grad()
def compute_dev_metrics(
    state: TrainState, objectives: Sequence[ObjectiveData], loader: FeatureLoader
) -> list[float]:
    """Returns each objective's dev metric in percent.

    Leaves the train state in training mode. Draws no random numbers.
    """
    state.train(False)
    try:
        return [
            _compute_dev_metric(state, index, data, loader) for index, data in enumerate(objectives)
        ]
    finally:
        state.train(True)


def average_metrics(names: Sequence[str], values: Sequence[float]) -> tuple[str, float]:
    """Returns name and value of the mean metric over the objectives, by which validations compare.

    Where accuracies and error rates are mixed, an error rate counts as 100 minus itself, so that
    higher is better for all.
    """
    if len(set(names)) == 1:
        return names[0], sum(values) / len(values)
    scores = [goodness(name, value) for name, value in zip(names, values, strict=True)]
    return MIXED, sum(scores) / len(scores)


def goodness(name: str, value: float) -> float:
    """Returns a metric turned so that higher is better: an error rate becomes 100 minus itself."""
    return value if name == MIXED or metric(name).higher_is_better else 100.0 - value


def score_constant_answer(data: ObjectiveData) -> float:
    """Returns the dev metric, in percent, of the best answer that is the same for everything: the
    share of the most frequent class, or 100, that of an empty answer, for an error rate."""
    if not metric(data.kind.metric).higher_is_better:
        return 100.0
    targets = torch.cat([item.target.reshape(-1) for item in data.dev])
    counts = torch.bincount(targets[targets != IGNORED])
    return 100.0 * int(counts.max()) / int(counts.sum()) if len(counts) else 0.0


def _compute_dev_metric(
    state: TrainState, index: int, data: ObjectiveData, loader: FeatureLoader
) -> float:
    batches = batch_by_seconds([item.utterance.samples for item in data.dev], MICRO_BATCH_SECONDS)
    groups = [[data.dev[place] for place in places] for places in batches]
    counted = total = 0
    with closing(loader.read_groups(index, groups)) as ready:
        for examples, clips in ready:
            with autocast_products(loader.precision, state.device):
                masks = [item.mask for item in examples if item.mask is not None] or None
                states, frames = loader.encode(clips, masks)
                logits = state.heads[index](states[-1], frames)
            tally = data.kind.tally(logits.float(), frames, [item.target for item in examples])
            counted, total = counted + tally.counted, total + tally.total
    return 100.0 * counted / max(1, total)
