"""Screens encoders without training: classifiers in closed form on pooled features, ABX of phones
on frames, and the similarity to the pre-trained encoder.

A screen costs one pass through the encoder, or none where its features are stored. It replaces no
evaluation: its rank correlation with the score says how far its order of encoders can be trusted
(docs/search.md, "Screening"). Sums are in float64 on the device of the features.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from pydantic import JsonValue

from speechft_ray.core.errors import UserError
from speechft_ray.core.rung_spec import SCREEN_FACT
from speechft_ray.core.specs import EvalSpec
from speechft_ray.speech.corpora.base import Corpus
from speechft_ray.speech.encoders.base import Encoder
from speechft_ray.speech.precision import use_float32_products
from speechft_ray.superb.abx import collect_tokens, measure_abx
from speechft_ray.superb.evaluate import (
    FeatureOpener,
    Progress,
    Report,
    SharedCaches,
    WeightedEncoder,
    one_thread,
)
from speechft_ray.superb.extractor import Advance, Features
from speechft_ray.superb.folds import precompute_means
from speechft_ray.superb.interpolation import FeatureSource
from speechft_ray.superb.setup import build_task_data
from speechft_ray.superb.tasks.base import TASKS, TaskData, TrainingFreeTask, list_utterances

PENALTY = 1e-2
"""Ridge penalty, as a share of the mean squared length of a standardised feature vector."""
SPLITS = ("train", "dev")


class Screens(NamedTuple):
    """Screens of one encoder on one task; each of the first two is that of its best layer."""

    ridge: float
    """Accuracy on dev of ridge regression to one-hot labels, in percent."""
    nearest_mean: float
    """Accuracy on dev of the nearest class mean by cosine, in percent."""
    cka: float | None
    """Linear CKA to the pre-trained encoder on dev, the mean over layers; ``None`` without it."""


def screen_encoder(
    spec: EvalSpec,
    encoder: Encoder,
    corpora: Sequence[Corpus],
    device: torch.device,
    report: Report,
    caches: SharedCaches | None = None,
) -> dict[str, JsonValue]:
    """Returns the facts of a screen on the task of an evaluation, whose features it reads and
    stores: a later evaluation of the encoder on dev encodes them not again.

    ``screen``: accuracies in percent, the means over ``corpora``, one per fold: ``ridge`` and
    ``nearest_mean`` of a task with one label per utterance, ``abx`` of one of frames. ``seconds``
    and ``encoded_seconds`` are as in ``superb.evaluate``. Raises ``UserError`` for labels that do
    not fit, and for frames without aligned phones.
    """
    began = time.perf_counter()
    task = TASKS.get(spec.task)
    data = [build_task_data(task, spec, corpus) for corpus in corpora]
    splits = SPLITS if task.pooled else ("dev",)
    progress = Progress(
        report, sum(len(of_fold.examples[split]) for of_fold in data for split in splits)
    )
    own = [WeightedEncoder(1.0, encoder, caches)]
    screens: list[dict[str, float]] = []
    features_seconds = encoded_seconds = 0.0
    with one_thread(device), use_float32_products("float32", device):
        means = precompute_means(spec, own, corpora, device, SPLITS) if len(corpora) > 1 else None
        for of_fold in data:
            utterances = {split: list_utterances(of_fold.examples[split]) for split in SPLITS}
            opener = FeatureOpener(spec, of_fold.corpus, device, task.pooled, utterances, means)
            source = opener.open(own)
            screens.append(screen_task(of_fold, source, progress.advance))
            features_seconds += source.seconds
            encoded_seconds += source.encoded_seconds
    values = {name: sum(each[name] for each in screens) / len(screens) for name in screens[0]}
    encoded_seconds += means.encoded_seconds if means is not None else 0.0
    other_seconds = time.perf_counter() - began - features_seconds
    return {
        SCREEN_FACT: {**values},
        "seconds": {"features": round(features_seconds, 3), "screen": round(other_seconds, 3)},
        "encoded_seconds": round(encoded_seconds, 1),
    }


def screen_task(
    data: TaskData | TrainingFreeTask, source: FeatureSource, advance: Advance
) -> dict[str, float]:
    """Returns the screens of a task on one corpus by name; see ``screen_encoder``."""
    if source.pooled:
        screens = screen(_check_labels(data), source, advance=advance)
        return {"ridge": screens.ridge, "nearest_mean": screens.nearest_mean}
    utterances = list_utterances(data.examples["dev"])
    tokens = collect_tokens(utterances, source.load({"dev": utterances}, advance)["dev"])
    errors = [
        measure_abx(of_layer.double(), tokens.phones, tokens.speakers) for of_layer in tokens.states
    ]
    return {"abx": 100 - min(errors)}


def screen(
    data: TaskData,
    source: FeatureSource,
    pretrained: FeatureSource | None = None,
    advance: Advance = lambda count: None,
) -> Screens:
    """Screens the features of an encoder on a task with one label per utterance.

    Raises ``UserError`` for another task.
    """
    _check_labels(data)
    utterances = {split: list_utterances(data.examples[split]) for split in SPLITS}
    features = source.load(utterances, advance)
    train, dev = (_restore(features[split]) for split in SPLITS)
    labels, dev_labels = (each.to(train.device) for each in _number_labels(data))
    scored = slice(None) if data.dev_indices is None else torch.tensor(data.dev_indices)
    ridge, nearest_mean, cka = [], [], []
    for of_train, of_dev in zip(train, dev, strict=True):
        arguments = (of_train.double(), labels, of_dev.double()[scored], dev_labels[scored])
        ridge.append(score_ridge(*arguments))
        nearest_mean.append(score_nearest_mean(*arguments))
    if pretrained is not None:
        start = _restore(pretrained.load({"dev": utterances["dev"]}, lambda count: None)["dev"])
        cka = [compute_cka(a.double(), b.double()) for a, b in zip(dev, start, strict=True)]
    mean_cka = sum(cka) / len(cka) if cka else None
    return Screens(ridge=max(ridge), nearest_mean=max(nearest_mean), cka=mean_cka)


def _check_labels(data: TaskData | TrainingFreeTask) -> TaskData:
    if isinstance(data, TrainingFreeTask) or data.pooled_head is None:
        raise UserError("only tasks with one label per utterance can be screened on means.")
    return data


def _number_labels(data: TaskData) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the classes of train and dev as numbers from 0; several labels of an utterance are
    one, and a class that train lacks is -1."""
    numbers: dict[tuple[int, ...], int] = {}
    train = [
        numbers.setdefault(tuple(example.target.tolist()), len(numbers))
        for example in data.examples["train"]
    ]
    dev = [numbers.get(tuple(example.target.tolist()), -1) for example in data.examples["dev"]]
    return torch.tensor(train), torch.tensor(dev)


def score_ridge(
    train: torch.Tensor,
    labels: torch.Tensor,
    dev: torch.Tensor,
    dev_labels: torch.Tensor,
    penalty: float = PENALTY,
) -> float:
    """Returns the accuracy on dev in percent of ridge regression to one-hot labels.

    ``train``, ``dev``: ``(utterances, dim)``, standardised here by the mean and deviation of train.
    ``labels``: classes from 0, each of which is there.
    """
    mean, deviation = train.mean(0), train.std(0, correction=0) + 1e-8
    inputs = (train - mean) / deviation
    counts, sums = _sum_by_class(inputs, labels)
    gram = inputs.T @ inputs
    gram.diagonal().add_(penalty * len(inputs))
    # The inputs are centred, so their product with centred one-hot labels is the sum by class.
    weights = torch.linalg.solve(gram, sums.T)
    guesses = ((dev - mean) / deviation @ weights + counts / len(inputs)).argmax(1)
    return float(100 * (guesses == dev_labels).double().mean())


def score_nearest_mean(
    train: torch.Tensor, labels: torch.Tensor, dev: torch.Tensor, dev_labels: torch.Tensor
) -> float:
    """Returns the accuracy on dev in percent of the class whose mean has the largest cosine, after
    the mean of train is subtracted. Arguments are those of ``score_ridge``."""
    centre = train.mean(0)
    counts, sums = _sum_by_class(train - centre, labels)
    means = sums / counts[:, None]
    means /= means.norm(dim=1, keepdim=True) + 1e-12
    guesses = ((dev - centre) @ means.T).argmax(1)
    return float(100 * (guesses == dev_labels).double().mean())


def _sum_by_class(inputs: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns how many inputs each class has, ``(classes,)``, and their sum, ``(classes, dim)``."""
    counts = labels.bincount()
    sums = inputs.new_zeros(len(counts), inputs.shape[1]).index_add_(0, labels, inputs)
    return counts, sums


def compute_cka(first: torch.Tensor, second: torch.Tensor) -> float:
    """Returns the linear centred kernel alignment of two feature matrices ``(utterances, dim)``
    (Kornblith et al. 2019, arXiv 1905.00414): 1 where one is a rotated, scaled other."""
    first, second = first - first.mean(0), second - second.mean(0)
    shared = (first.T @ second).norm() ** 2
    return float(shared / ((first.T @ first).norm() * (second.T @ second).norm()))


def _restore(features: Features) -> torch.Tensor:
    """Returns means as ``(layers, utterances, dim)``."""
    return features.batch(slice(0, features.count)).restore()
