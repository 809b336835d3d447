"""K crops of long training utterances: which there are, how often each is sampled, and that nothing
else changes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch

from speechft_ray.core.errors import SpecError
from speechft_ray.core.specs import CorpusSpec, EvalSpec
from speechft_ray.speech.corpora.base import Utterance
from speechft_ray.superb.evaluate import evaluate
from speechft_ray.superb.extractor import Batch
from speechft_ray.superb.sampling import sample_batches
from speechft_ray.superb.setup import build_task_data
from speechft_ray.superb.stacked import train_stacked
from speechft_ray.superb.tasks._segments import make_crops
from speechft_ray.superb.tasks.base import TASKS, TaskData
from tests.superb.probe_helpers import (
    average_frames,
    ignore,
    noise_features,
    toy_schedule,
    train_probe,
)
from tests.superb.toy_models import ToyEncoder, toy_corpus

COUNTS = {"train": 12, "dev": 4, "test": 6}
LONG = 7_000
"""Samples: some of the toy utterances are longer, some are not."""


def spec(task: str = "sid", **options: Any) -> EvalSpec:
    return EvalSpec(task=task, corpus=CorpusSpec(), updates=6, batch_size=5, options=options)


def build_with_crops(task: str = "sid", crops: int = 4, train: int = 12) -> TaskData:
    corpus = toy_corpus({**COUNTS, "train": train})
    crop_spec = spec(task, crops=crops, crop_seconds=LONG / 16_000)
    data = build_task_data(TASKS.get(task), crop_spec, corpus)
    assert isinstance(data, TaskData)
    return data


@pytest.mark.parametrize("task", ["sid", "er", "ks", "ic"])
def test_long_training_utterances_have_crops_and_nothing_else_is_cut(task: str) -> None:
    data, plain = (
        build_with_crops(task),
        build_task_data(TASKS.get(task), spec(task), toy_corpus(COUNTS)),
    )
    assert data.alternatives is not None
    train = data.examples["train"]
    assert [index for indices in data.alternatives for index in indices] == list(range(len(train)))
    lengths = []
    for indices, whole in zip(data.alternatives, plain.examples["train"], strict=True):
        crops = [train[index] for index in indices]
        lengths.append(whole.utterance.samples)
        assert len(crops) == (4 if whole.utterance.samples > LONG else 1)
        assert len({crop.utterance.key for crop in crops}) == len(crops)
        audio = plain.corpus.read(whole.utterance)
        for crop in crops:
            assert crop.utterance.samples == min(LONG, whole.utterance.samples)
            audio_read = data.corpus.read(crop.utterance)
            start = (
                int(crop.utterance.key.split("[")[1].split(":")[0])
                if "[" in crop.utterance.key
                else 0
            )
            assert (audio_read == audio[start : start + len(audio_read)]).all()
            assert len(audio_read) == crop.utterance.samples
            assert torch.equal(crop.target, whole.target) and crop.reference == whole.reference
    assert min(lengths) <= LONG < max(lengths)
    for split in ("dev", "test"):
        whole_items, items = (
            [(item.utterance.key, item.utterance.samples) for item in examples]
            for examples in (plain.examples[split], data.examples[split])
        )
        assert items == whole_items


def test_crops_begin_anywhere_and_follow_from_the_key() -> None:
    def utterance(key: str, samples: int = 1100) -> Utterance:
        return Utterance(key=key, split="train", samples=samples, labels={})

    starts = [
        crop.start
        for number in range(2000)
        for crop in make_crops(utterance(f"u{number}"), 3, 1000)
    ]
    counts = Counter(start // 10 for start in starts if start < 100)
    assert min(starts) == 0 and max(starts) == 100
    assert all(
        abs(counts[tenth] - 600) < 5 * 600**0.5 for tenth in range(10)
    )  # of 6000, a tenth each; five deviations
    assert make_crops(utterance("u0"), 3, 1000) == make_crops(utterance("u0"), 3, 1000)
    assert len(make_crops(utterance("hardly longer", 1001), 3, 1000)) == 2  # there are no more
    (whole,) = make_crops(utterance("just as long", 1000), 3, 1000)
    assert whole.utterance == utterance("just as long", 1000)


@pytest.mark.parametrize("size", [5, 12])
def test_an_epoch_has_every_utterance_once_and_every_crop_is_as_likely(size: int) -> None:
    data = build_with_crops()
    assert data.alternatives is not None
    owner = {index: number for number, indices in enumerate(data.alternatives) for index in indices}
    order = sample_batches(
        toy_schedule(batch_size=size),
        data.examples["train"],
        torch.Generator().manual_seed(0),
        data.alternatives,
    )
    epochs, batches = 2000, -(-12 // size)
    sampled: Counter[int] = Counter()
    for _ in range(epochs):
        indices = torch.cat(
            [batch for batch in islice(order, batches) if isinstance(batch, torch.Tensor)]
        ).tolist()
        assert sorted(owner[index] for index in indices) == list(range(12))
        sampled.update(indices)
    for alternatives in data.alternatives:
        expected = epochs / len(alternatives)
        deviation = (expected * (1 - 1 / len(alternatives))) ** 0.5
        assert all(abs(sampled[index] - expected) <= 5 * deviation for index in alternatives)


def test_balanced_sampling_counts_utterances_not_crops() -> None:
    """Classes are equally likely though those of long utterances have more examples."""
    data = build_with_crops("ks", crops=6, train=24)
    plan = toy_schedule(batch_size=24, sampling="balanced", metric="ks.accuracy")
    order = sample_batches(
        plan, data.examples["train"], torch.Generator().manual_seed(0), data.alternatives
    )
    labels = Counter(
        data.examples["train"][int(index)].reference
        for batch in islice(order, 400)
        if isinstance(batch, torch.Tensor)
        for index in batch
    )
    deviation = (9600 * 0.25 * 0.75) ** 0.5
    assert all(abs(count - 2400) < 5 * deviation for count in labels.values())
    assert len(labels) == 4


def test_utterances_no_longer_than_a_crop_stay_as_they_are() -> None:
    whole = build_task_data(TASKS.get("sid"), spec(crops=3), toy_corpus(COUNTS))
    assert isinstance(whole, TaskData) and whole.alternatives == [
        range(index, index + 1) for index in range(12)
    ]
    plain = build_task_data(TASKS.get("sid"), spec(), toy_corpus(COUNTS))
    assert isinstance(plain, TaskData) and plain.alternatives is None
    assert [item.utterance.key for item in whole.examples["train"]] == [
        item.utterance.key for item in plain.examples["train"]
    ]


def test_a_stack_samples_the_crops_that_each_probe_samples_alone() -> None:
    data = build_with_crops()
    train, dev = (
        average_frames(noise_features(data, split, hint=0.5)) for split in ("train", "dev")
    )
    plan = toy_schedule(updates=12, validate_every_updates=6)
    stacked = train_stacked(data, train, dev, plan, [1e-2], 2, ignore)[0]
    alone = [train_probe(data, train, dev, plan, seed) for seed in range(2)]
    batch = Batch(dev.states, dev.frames)
    for one, other in zip(stacked, alone, strict=True):
        torch.testing.assert_close(
            one.probe.eval()(batch), other.probe.eval()(batch), rtol=1e-3, atol=1e-4
        )
    without = train_probe(replace(data, alternatives=None), train, dev, plan, 0)
    assert not torch.allclose(
        without.probe.eval()(batch), alone[0].probe.eval()(batch), rtol=1e-3, atol=1e-4
    )


def test_an_evaluation_encodes_each_crop_once_and_counts_utterances() -> None:
    encoder = ToyEncoder()
    facts = evaluate(
        spec(crops=4, crop_seconds=LONG / 16_000),
        encoder,
        toy_corpus(COUNTS),
        torch.device("cpu"),
        lambda _: None,
    )
    assert sum(encoder.calls) == len(build_with_crops().examples["train"]) + 4 + 6
    assert facts["utterances"] == COUNTS


@pytest.mark.parametrize("wrong", [{"crops": -1}, {"crops": 1, "crop_seconds": 0.02}])
def test_impossible_crops_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="task `sid` has 1 mistake"):
        build_task_data(TASKS.get("sid"), spec(**wrong), toy_corpus(COUNTS))
