"""Evaluations read ahead of their encoder: the audio of the next utterances and batches is read
while it computes, and no number depends on how many threads read."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest
import torch

from speechft_ray.core.errors import UserError
from speechft_ray.speech.corpora.base import Corpus, Utterance
from speechft_ray.speech.encoders.base import HiddenStates
from speechft_ray.speech.features.cache import FeatureCache
from speechft_ray.superb.extractor import Extractor, Features, Indices, iterate_batches
from speechft_ray.superb.feature_store import FeatureStorage
from speechft_ray.superb.features import prepare_features
from tests.superb.toy_models import ToyEncoder, toy_corpus

CPU = torch.device("cpu")
SECONDS = 60.0
"""Longest wait for another thread; it is reached only where the code is wrong."""


@pytest.fixture(autouse=True)
def leaves_no_thread() -> Iterator[None]:
    yield
    assert not [item for item in threading.enumerate() if item.name.startswith("speechft-reader")]


class Meeting:
    """A corpus and an encoder. Before it ends, each encoding but the last waits until the audio of
    the next one is being read."""

    def __init__(self, total: int) -> None:
        self.total, self.begun, self.encoded = total, 0, 0
        self.changed = threading.Condition()
        self.toy = toy_corpus({"train": 6, "dev": 3})
        self.corpus = replace(self.toy, read=self.read)

    def read(self, utterance: Utterance) -> np.ndarray:
        with self.changed:
            self.begun += 1
            self.changed.notify_all()
        return self.toy.read(utterance)

    def compute(self, utterances: int) -> None:
        self.encoded += utterances
        expected = min(self.encoded + 1, self.total)
        with self.changed:
            assert self.changed.wait_for(lambda: self.begun >= expected, SECONDS)


class MeetingEncoder(ToyEncoder):
    def __init__(self, meeting: Meeting) -> None:
        super().__init__()
        self.meeting = meeting

    def hidden_states(self, waves: Sequence[torch.Tensor]) -> HiddenStates:
        self.meeting.compute(len(waves))
        return super().hidden_states(waves)


def prepare_train(extractor: Extractor, storage: FeatureStorage) -> Features:
    splits = {"train": extractor.corpus.split("train")}
    return prepare_features(extractor, splits, lambda count: None, storage)["train"]


@pytest.mark.parametrize("pooled", [True, False])
def test_encoding_a_split_reads_the_next_utterances_meanwhile(pooled: bool) -> None:
    meeting = Meeting(total=6)
    extractor = Extractor(MeetingEncoder(meeting), meeting.corpus, CPU, pooled)
    prepare_train(extractor, FeatureStorage())
    assert meeting.encoded == 6


def test_features_on_the_fly_read_the_next_batches_meanwhile() -> None:
    meeting = Meeting(total=8)
    extractor = Extractor(MeetingEncoder(meeting), meeting.corpus, CPU, pooled=False)
    features = prepare_train(extractor, FeatureStorage(memory_bytes=0))
    assert features.location == "recomputed"
    order: list[Indices] = [torch.tensor([4, 0]), torch.tensor([1, 1, 5]), slice(2, 5)]
    assert [len(batch.frames) for _, batch in features.read_batches(order)] == [2, 3, 3]
    assert meeting.encoded == 8


def load(storage: str, readers: int, folder: Path) -> Features:
    corpus = replace(toy_corpus({"train": 6, "dev": 3}), is_in_memory=readers == 0)
    extractor = Extractor(ToyEncoder(), corpus, CPU, pooled=False)
    extractor.readers = readers
    cache = FeatureCache(folder, budget_bytes=1 << 24) if storage == "disk" else None
    features = prepare_train(
        extractor, FeatureStorage(memory_bytes=1 << 24 if storage == "memory" else 0, cache=cache)
    )
    assert features.location == storage
    return features


@pytest.mark.parametrize("storage", ["memory", "disk", "recomputed"])
def test_batches_are_the_same_to_the_bit_however_many_threads_read(
    storage: str, tmp_path: Path
) -> None:
    order: list[Indices] = [torch.tensor([4, 0, 0]), slice(1, 4), torch.tensor([5]), slice(0, 6)]
    reference = load("memory", 0, tmp_path)
    for readers in (0, 1, 3):
        features = load(storage, readers, tmp_path)
        pairs = list(features.read_batches(order))
        assert [indices for indices, _ in pairs] == order
        for (indices, batch), again in zip(pairs, map(features.batch, order), strict=True):
            expected = reference.batch(indices)
            for states in (batch.states, again.states):
                assert torch.equal(states, expected.states)
            assert torch.equal(batch.frames, expected.frames)
        whole = torch.cat([batch.states for batch in iterate_batches(features, 4)], dim=1)
        assert torch.equal(whole, reference.batch(slice(0, 6)).states)


@pytest.mark.parametrize("storage", ["memory", "disk", "recomputed"])
def test_an_endless_order_is_read_as_far_as_it_is_asked_for(storage: str, tmp_path: Path) -> None:
    features = load(storage, 2, tmp_path)
    batches = features.read_batches(torch.tensor([index % 6]) for index in count())
    lengths = [int(batch.frames) for _, batch in islice(batches, 12)]
    assert lengths == 2 * features.batch(slice(0, 6)).frames.tolist()
    batches.close()


def damage(corpus: Corpus, key: str) -> Corpus:
    def read(utterance: Utterance) -> np.ndarray:
        if utterance.key == key:
            raise UserError(f"{key} is damaged.")
        return corpus.read(utterance)

    return replace(corpus, read=read)


def test_what_a_reader_raises_reaches_the_caller() -> None:
    corpus = damage(toy_corpus({"train": 6, "dev": 3}), "train-3")
    extractor = Extractor(ToyEncoder(), corpus, CPU, pooled=False)
    with pytest.raises(UserError, match="train-3 is damaged") as info:
        prepare_train(extractor, FeatureStorage())
    assert info.value.__cause__ is None
    features = prepare_train(extractor, FeatureStorage(memory_bytes=0))
    read = []
    with pytest.raises(UserError, match="train-3 is damaged"):
        for indices, _ in features.read_batches([slice(0, 2), slice(2, 3), slice(3, 5)]):
            read.append(indices)
    assert read == [slice(0, 2), slice(2, 3)]


def test_an_interrupt_of_the_encoder_ends_the_threads() -> None:
    class Interrupted(ToyEncoder):
        def hidden_states(self, waves: Sequence[torch.Tensor]) -> HiddenStates:
            if len(self.calls) == 2:
                raise KeyboardInterrupt
            return super().hidden_states(waves)

    extractor = Extractor(Interrupted(), toy_corpus({"train": 6, "dev": 3}), CPU, pooled=True)
    with pytest.raises(KeyboardInterrupt):
        prepare_train(extractor, FeatureStorage())
