"""Screens encoders without training: classifiers in closed form on pooled features, and the
similarity to the pre-trained encoder.

A screen costs one pass through the encoder, or none where its features are stored. It replaces no
evaluation: its rank correlation with the score says how far its order of encoders can be trusted
(``benchmarks/screening.py``; docs/search.md, "Screening").
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from speechft_ray.core.errors import UserError
from speechft_ray.superb.extractor import Features
from speechft_ray.superb.interpolation import FeatureSource
from speechft_ray.superb.tasks.base import TaskData, list_utterances

PENALTY = 1e-2
"""Ridge penalty, as a share of the mean squared length of a standardised feature vector."""


class Screens(NamedTuple):
    """Screens of one encoder on one task; each of the first two is that of its best layer."""

    ridge: float
    """Accuracy on dev of ridge regression to one-hot labels, in percent."""
    centroid: float
    """Accuracy on dev of the nearest class mean by cosine, in percent."""
    cka: float | None
    """Linear CKA to the pre-trained encoder on dev, the mean over layers; ``None`` without it."""


def screen(
    data: TaskData, source: FeatureSource, pretrained: FeatureSource | None = None
) -> Screens:
    """Screens the features of an encoder on a task with one label per utterance.

    Raises ``UserError`` for another task.
    """
    if data.pooled_head is None:
        raise UserError("only tasks with one label per utterance can be screened on means.")
    splits = {split: list_utterances(data.examples[split]) for split in ("train", "dev")}
    features = source.load(splits, lambda count: None)
    train, dev = (_to_array(features[split]) for split in ("train", "dev"))
    labels, dev_labels = _number_labels(data)
    layers = range(len(train))
    cka = None
    if pretrained is not None:
        start = _to_array(pretrained.load({"dev": splits["dev"]}, lambda count: None)["dev"])
        cka = float(np.mean([compute_cka(dev[layer], start[layer]) for layer in layers]))
    arguments = [(train[layer], labels, dev[layer], dev_labels) for layer in layers]
    return Screens(
        ridge=max(score_ridge(*each) for each in arguments),
        centroid=max(score_centroids(*each) for each in arguments),
        cka=cka,
    )


def _number_labels(data: TaskData) -> tuple[np.ndarray, np.ndarray]:
    """Returns the classes of train and dev as numbers; several labels of an utterance are one."""
    targets = [
        example.target.tolist() for split in ("train", "dev") for example in data.examples[split]
    ]
    _, numbers = np.unique(np.array(targets), axis=0, return_inverse=True)
    numbers = numbers.ravel()
    count = len(data.examples["train"])
    return numbers[:count], numbers[count:]


def score_ridge(
    train: np.ndarray,
    labels: np.ndarray,
    dev: np.ndarray,
    dev_labels: np.ndarray,
    penalty: float = PENALTY,
) -> float:
    """Returns the accuracy on dev in percent of ridge regression to one-hot labels.

    ``train``, ``dev``: ``(utterances, dim)``, standardised here by the mean and deviation of train.
    """
    mean, deviation = train.mean(0), train.std(0) + 1e-8
    inputs = (train - mean) / deviation
    classes, targets = np.unique(labels, return_inverse=True)
    one_hot = np.eye(len(classes))[targets]
    offset = one_hot.mean(0)
    gram = inputs.T @ inputs + penalty * len(inputs) * np.eye(inputs.shape[1])
    weights = np.linalg.solve(gram, inputs.T @ (one_hot - offset))
    guesses = classes[np.argmax((dev - mean) / deviation @ weights + offset, axis=1)]
    return float(100 * np.mean(guesses == dev_labels))


def score_centroids(
    train: np.ndarray, labels: np.ndarray, dev: np.ndarray, dev_labels: np.ndarray
) -> float:
    """Returns the accuracy on dev in percent of the class whose mean has the largest cosine, after
    the mean of train is subtracted."""
    centre = train.mean(0)
    classes = np.unique(labels)
    means = np.stack([train[labels == each].mean(0) for each in classes]) - centre
    means /= np.linalg.norm(means, axis=1, keepdims=True) + 1e-12
    guesses = classes[np.argmax((dev - centre) @ means.T, axis=1)]
    return float(100 * np.mean(guesses == dev_labels))


def compute_cka(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the linear centred kernel alignment of two feature matrices ``(utterances, dim)``
    (Kornblith et al. 2019, arXiv 1905.00414): 1 where one is a rotated, scaled other."""
    first, second = first - first.mean(0), second - second.mean(0)
    shared = np.linalg.norm(first.T @ second) ** 2
    return float(shared / (np.linalg.norm(first.T @ first) * np.linalg.norm(second.T @ second)))


def _to_array(features: Features) -> np.ndarray:
    """Returns means as float64 ``(layers, utterances, dim)``."""
    states: torch.Tensor = features.batch(slice(0, features.count)).restore()
    array: np.ndarray = states.double().cpu().numpy()
    return array
