"""Screens without training, against plain numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speechft_ray.core.errors import UserError
from speechft_ray.core.specs import CorpusSpec, EvalSpec
from speechft_ray.speech.corpora.base import Utterance
from speechft_ray.speech.encoders.base import HiddenStates
from speechft_ray.speech.features.cache import FeatureCache
from speechft_ray.superb.evaluate import FeatureOpener, SharedCaches, WeightedEncoder, evaluate
from speechft_ray.superb.interpolation import FeatureSource
from speechft_ray.superb.screening import (
    compute_cka,
    score_nearest_mean,
    score_ridge,
    screen,
    screen_encoder,
)
from speechft_ray.superb.setup import build_task_data
from speechft_ray.superb.tasks.base import TASKS, TaskData, list_utterances
from tests.superb.test_abx import align
from tests.superb.toy_models import ToyEncoder, toy_corpus


def make_classes(seed: int, count: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Points of three classes in six dimensions around fixed means."""
    random = np.random.default_rng(seed)
    means = np.random.default_rng(9).normal(size=(3, 6))
    labels = random.integers(0, 3, count)
    return means[labels] + spread * random.normal(size=(count, 6)), labels


def to_tensors(*arrays: np.ndarray) -> Any:
    return [torch.from_numpy(each) for each in arrays]


def test_ridge_is_least_squares_with_penalty_rows() -> None:
    train, labels = make_classes(0, 60, 1.5)
    dev, dev_labels = make_classes(1, 2000, 1.5)
    mixing = np.ones((6, 6)) + np.diag([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])  # nearly one direction
    train, dev = train @ mixing, dev @ mixing
    scaled, one_hot = (train - train.mean(0)) / train.std(0), np.eye(3)[labels]

    def solve(penalty: float) -> float:
        """The penalty as more observations: sqrt(penalty * n) times each weight should be 0."""
        more = np.sqrt(penalty * len(train)) * np.eye(6)
        weights, *_ = np.linalg.lstsq(
            np.vstack([scaled, more]), np.vstack([one_hot - one_hot.mean(0), np.zeros((6, 3))])
        )
        guesses = ((dev - train.mean(0)) / train.std(0) @ weights + one_hot.mean(0)).argmax(1)
        return float(100 * np.mean(guesses == dev_labels))

    inputs, targets, dev_inputs, dev_targets = to_tensors(train, labels, dev, dev_labels)
    result = score_ridge(inputs, targets, dev_inputs, dev_targets, penalty=0.5)
    assert result == pytest.approx(solve(0.5))
    assert score_ridge(inputs, targets, dev_inputs, dev_targets) == pytest.approx(solve(0.01))
    assert len({solve(penalty) for penalty in (0.01, 0.1, 0.5)}) == 3
    assert 40 < solve(0.5) < 100


def test_nearest_means_are_those_of_a_loop() -> None:
    train, labels = make_classes(0, 60, 1.5)
    dev, dev_labels = make_classes(1, 200, 1.5)
    right = 0
    for point, label in zip(dev - train.mean(0), dev_labels, strict=True):
        cosines = []
        for each in range(3):
            mean = train[labels == each].mean(0) - train.mean(0)
            cosines.append(point @ mean / np.linalg.norm(point) / np.linalg.norm(mean))
        right += int(np.argmax(cosines) == label)
    inputs = to_tensors(train, labels, dev, dev_labels)
    assert score_nearest_mean(*inputs) == pytest.approx(right / 2)


def test_cka_is_that_of_centred_gram_matrices() -> None:
    random = np.random.default_rng(0)
    first = random.normal(size=(40, 6)) + 3
    second = first @ random.normal(size=(6, 4)) + random.normal(size=(40, 4))
    centring = np.eye(40) - 1 / 40
    grams = [centring @ x @ x.T @ centring for x in (first, second)]
    expected = np.sum(grams[0] * grams[1]) / np.linalg.norm(grams[0]) / np.linalg.norm(grams[1])
    assert compute_cka(*to_tensors(first, second)) == pytest.approx(expected)
    rotation = np.linalg.qr(random.normal(size=(6, 6)))[0]
    assert compute_cka(*to_tensors(first, 7 * first @ rotation)) == pytest.approx(1.0)


class DeafEncoder(ToyEncoder):
    """Its last layer hears nothing."""

    def hidden_states(self, waves: Sequence[torch.Tensor]) -> HiddenStates:
        (*states, last), frames = super().hidden_states(waves)
        return HiddenStates((*states, torch.ones_like(last)), frames)


def open_toy(task: str, kind: type[ToyEncoder] = ToyEncoder) -> tuple[TaskData, FeatureSource]:
    spec = EvalSpec(corpus=CorpusSpec(), task=task, updates=1)
    data = build_task_data(TASKS.get(task), spec, toy_corpus())
    assert isinstance(data, TaskData)
    utterances = {split: list_utterances(data.examples[split]) for split in ("train", "dev")}
    opener = FeatureOpener(spec, data.corpus, torch.device("cpu"), data.pooled_head is not None,
                      utterances, None)  # fmt: skip
    return data, opener.open([WeightedEncoder(1.0, kind(), None)])


def test_tones_are_told_apart_without_training() -> None:
    data, source = open_toy("sid")
    result = screen(data, source, source)
    assert result.ridge == result.nearest_mean == 100.0
    assert result.cka == pytest.approx(1.0)


def test_the_best_layer_is_what_counts() -> None:
    """The last one alone has a quarter right, and half of the triples of phones."""
    data, source = open_toy("sid", DeafEncoder)
    result = screen(data, source)
    assert result.ridge == result.nearest_mean == 100.0
    spec = EvalSpec(corpus=CorpusSpec(), task="pr", updates=1)
    facts: Any = screen_encoder(
        spec, DeafEncoder(), [align(toy_corpus())], torch.device("cpu"), ignore
    )
    assert 80 < facts["screen"]["abx"] <= 100


def test_the_screen_of_a_job_keeps_its_features_for_the_evaluation(tmp_path: Path) -> None:
    """Both read them from the cache, and no audio is encoded again."""
    spec = EvalSpec(corpus=CorpusSpec(), task="sid", updates=1)
    caches = SharedCaches(cache=FeatureCache(tmp_path, 1 << 24), encoder="toy", front_end=None)
    corpus, device, done = toy_corpus(), torch.device("cpu"), list[Any]()
    facts: Any = screen_encoder(spec, ToyEncoder(), [corpus], device, done.append, caches)
    assert facts["screen"] == {"ridge": 100.0, "nearest_mean": 100.0}
    assert facts["encoded_seconds"] > 1 and set(facts["seconds"]) == {"features", "screen"}
    assert done[-1]["done"] == done[-1]["total"] == 64
    again: Any = screen_encoder(spec, ToyEncoder(), [corpus], device, done.append, caches)
    assert again["screen"] == facts["screen"] and again["encoded_seconds"] == 0.0
    encoder = ToyEncoder()
    evaluate(spec, encoder, corpus, device, done.append, caches=caches, dev_only=True)
    assert encoder.calls == []


def test_the_screen_of_folds_is_their_mean_and_classes_of_dev_alone_are_never_right() -> None:
    """In the second fold half of dev has pairs of labels that train lacks."""

    def relabel(item: Utterance) -> Utterance:
        kind = item.labels["carrier"]
        other = "1" if item.split == "dev" and kind in "02" else kind
        return replace(item, labels={**item.labels, "action": kind, "object": other})

    plain, mixed = toy_corpus({"train": 12, "dev": 8, "test": 4}), toy_corpus()
    corpora = [plain, replace(mixed, utterances=[*map(relabel, mixed.utterances)])]
    spec = EvalSpec(corpus=CorpusSpec(), task="ic", updates=1)
    facts: Any = screen_encoder(spec, ToyEncoder(), corpora, torch.device("cpu"), ignore)
    assert facts["screen"] == {"ridge": 75.0, "nearest_mean": 75.0}


def ignore(values: Any) -> None:
    """Reports nothing."""


def test_keywords_are_screened_on_the_balanced_dev_of_their_protocol() -> None:
    """An utterance whose label is wrong counts as often as the protocol drew it."""
    data, source = open_toy("ks")
    assert data.dev_indices is not None
    first, *others = data.examples["dev"]
    examples = [first._replace(target=torch.tensor([9])), *others]
    changed = replace(data, examples={**data.examples, "dev": examples})
    wrong = list(data.dev_indices).count(0) / len(data.dev_indices)
    assert screen(changed, source).ridge == pytest.approx(100 * (1 - wrong))


def test_only_tasks_with_labels_of_utterances_are_screened() -> None:
    data, source = open_toy("pr")
    with pytest.raises(UserError, match="one label per utterance"):
        screen(data, source)
