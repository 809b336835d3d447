"""Screens without training, against plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from speechft_ray.core.errors import UserError
from speechft_ray.core.specs import CorpusSpec, EvalSpec
from speechft_ray.superb.evaluate import FeatureOpener, WeightedEncoder
from speechft_ray.superb.interpolation import FeatureSource
from speechft_ray.superb.screening import (
    compute_cka,
    score_centroids,
    score_ridge,
    screen,
)
from speechft_ray.superb.setup import build_task_data
from speechft_ray.superb.tasks.base import TASKS, TaskData, list_utterances
from tests.superb.toy_models import ToyEncoder, toy_corpus


def make_classes(seed: int, count: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Points of three classes in six dimensions around fixed means."""
    random = np.random.default_rng(seed)
    means = np.random.default_rng(9).normal(size=(3, 6))
    labels = random.integers(0, 3, count)
    return means[labels] + spread * random.normal(size=(count, 6)), labels


def test_ridge_is_least_squares_with_penalty_rows() -> None:
    train, labels = make_classes(0, 60, 1.5)
    dev, dev_labels = make_classes(1, 200, 1.5)
    # The penalty as more observations: sqrt(penalty * n) times each weight should be 0.
    scaled = (train - train.mean(0)) / train.std(0)
    one_hot = np.eye(3)[labels]
    more = np.sqrt(0.5 * len(train)) * np.eye(6)
    weights, *_ = np.linalg.lstsq(
        np.vstack([scaled, more]), np.vstack([one_hot - one_hot.mean(0), np.zeros((6, 3))])
    )
    guesses = ((dev - train.mean(0)) / train.std(0) @ weights + one_hot.mean(0)).argmax(1)
    expected = 100 * np.mean(guesses == dev_labels)
    assert score_ridge(train, labels, dev, dev_labels, penalty=0.5) == pytest.approx(expected)
    assert 40 < expected < 100


def test_centroids_are_those_of_a_loop() -> None:
    train, labels = make_classes(0, 60, 1.5)
    dev, dev_labels = make_classes(1, 200, 1.5)
    right = 0
    for point, label in zip(dev - train.mean(0), dev_labels, strict=True):
        cosines = []
        for each in range(3):
            mean = train[labels == each].mean(0) - train.mean(0)
            cosines.append(point @ mean / np.linalg.norm(point) / np.linalg.norm(mean))
        right += int(np.argmax(cosines) == label)
    assert score_centroids(train, labels, dev, dev_labels) == pytest.approx(right / 2)


def test_cka_is_that_of_centred_gram_matrices() -> None:
    random = np.random.default_rng(0)
    first = random.normal(size=(40, 6)) + 3
    second = first @ random.normal(size=(6, 4)) + random.normal(size=(40, 4))
    centring = np.eye(40) - 1 / 40
    grams = [centring @ x @ x.T @ centring for x in (first, second)]
    expected = np.sum(grams[0] * grams[1]) / np.linalg.norm(grams[0]) / np.linalg.norm(grams[1])
    assert compute_cka(first, second) == pytest.approx(expected)
    rotation = np.linalg.qr(random.normal(size=(6, 6)))[0]
    assert compute_cka(first, 7 * first @ rotation) == pytest.approx(1.0)


def open_toy(task: str) -> tuple[TaskData, FeatureSource]:
    spec = EvalSpec(corpus=CorpusSpec(), task=task, updates=1)
    data = build_task_data(TASKS.get(task), spec, toy_corpus())
    assert isinstance(data, TaskData)
    utterances = {split: list_utterances(data.examples[split]) for split in ("train", "dev")}
    opener = FeatureOpener(spec, data.corpus, torch.device("cpu"), data.pooled_head is not None,
                      utterances, None)  # fmt: skip
    return data, opener.open([WeightedEncoder(1.0, ToyEncoder(), None)])


def test_tones_are_told_apart_without_training() -> None:
    data, source = open_toy("sid")
    result = screen(data, source, source)
    assert result.ridge == result.centroid == 100.0
    assert result.cka == pytest.approx(1.0)


def test_only_tasks_with_labels_of_utterances_are_screened() -> None:
    data, source = open_toy("pr")
    with pytest.raises(UserError, match="one label per utterance"):
        screen(data, source)
