"""Features: normalised, independent of batch and order, stored within a budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speechft_ray.core.errors import UserError
from speechft_ray.speech.batching import PADDED
from speechft_ray.speech.corpora.base import Corpus, Utterance
from speechft_ray.speech.encoders.base import HiddenStates
from speechft_ray.speech.features.cache import FeatureCache
from speechft_ray.superb.extractor import Extractor, Features
from speechft_ray.superb.feature_store import FeatureStorage, FeatureStore
from speechft_ray.superb.features import prepare_features, size_in_bytes
from tests.fake_cuda import fake_cuda
from tests.superb.toy_models import DIM, STATE_COUNT, ToyEncoder, toy_corpus

CPU = torch.device("cpu")


def extractor(pooled: bool = False, **corpus: Any) -> Extractor:
    return Extractor(ToyEncoder(), toy_corpus({"train": 9, "dev": 5}, **corpus), CPU, pooled)


NOTHING_STORED = FeatureStorage(memory_bytes=0)


def prepare(
    extract: Extractor,
    utterances: Sequence[Utterance],
    storage: FeatureStorage = FeatureStorage(),  # noqa: B008 - a frozen tuple
) -> Features:
    return prepare_features(extract, {"train": utterances}, lambda count: None, storage)["train"]


def normalise_with_numpy(utterance: Utterance) -> np.ndarray:
    encoder, corpus = ToyEncoder(), toy_corpus({"train": 9, "dev": 5})
    encoded = encoder.hidden_states([torch.from_numpy(corpus.read(utterance))])
    values = torch.stack(encoded.states)[:, 0].detach().double().numpy()
    centred = values - values.mean(axis=-1, keepdims=True)
    normalised: np.ndarray = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
    return normalised


def test_states_are_layer_normalised_and_pooling_averages_the_normalised_frames() -> None:
    frames, means = extractor(pooled=False), extractor(pooled=True)
    utterance = frames.corpus.utterances[3]
    expected = normalise_with_numpy(utterance)
    np.testing.assert_allclose(
        frames([utterance])[0].numpy(), expected, rtol=2**-11, atol=1e-5
    )  # float16 has 11 bits
    np.testing.assert_allclose(
        means([utterance])[0].numpy(), expected.mean(axis=1, keepdims=True), atol=1e-6
    )


def test_padding_frames_of_an_encoder_are_cut_off() -> None:
    class Padding(ToyEncoder):
        def hidden_states(self, waves: Sequence[torch.Tensor]) -> HiddenStates:
            states, frames = super().hidden_states(waves)
            return HiddenStates(states, frames - 2)

    whole, cut = extractor(), extractor()
    cut.encoder = Padding()
    utterance = whole.corpus.utterances[0]
    assert torch.equal(whole([utterance])[0][:, :-2], cut([utterance])[0])


def test_encoding_is_frozen_and_one_by_one() -> None:
    encoder, corpus = ToyEncoder(), toy_corpus({"train": 9, "dev": 5})
    encoder.train()
    extract = Extractor(encoder, corpus, CPU, False)
    stored = prepare(extract, extract.corpus.split("train"))
    assert not encoder.training
    assert not stored.batch(slice(0, 2)).states.requires_grad
    assert encoder.calls == [1] * 9
    assert extract.seconds > 0


@pytest.mark.parametrize("pooled", [True, False])
def test_order_and_batch_change_no_bit(pooled: bool) -> None:
    extract = extractor(pooled)
    utterances = extract.corpus.split("train")
    stored = prepare(extract, utterances)
    reverse = prepare(extract, utterances[::-1])
    recomputed = prepare(extract, utterances, NOTHING_STORED)
    for index, utterance in enumerate(utterances):
        alone = extract([utterance])[0]
        for features, position in (
            (stored, index),
            (reverse, len(utterances) - 1 - index),
            (recomputed, index),
        ):
            batch = features.batch(slice(position, position + 1))
            assert torch.equal(batch.states, alone.float())
            assert batch.frames.tolist() == [alone.shape[1]]


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("indices", [slice(2, 6), torch.tensor([4, 0, 0, 8])])
def test_stored_and_recomputed_features_are_the_same(
    pooled: bool, indices: slice | torch.Tensor
) -> None:
    extract = extractor(pooled)
    utterances = extract.corpus.split("train")
    stored, recomputed = (
        prepare(extract, utterances).batch(indices),
        prepare(extract, utterances, NOTHING_STORED).batch(indices),
    )
    assert torch.equal(stored.states, recomputed.states)
    assert torch.equal(stored.frames, recomputed.frames)
    assert stored.states.shape == (STATE_COUNT, int(stored.frames.sum()), DIM)


def test_a_window_of_stored_means_is_a_view() -> None:
    extract = extractor(pooled=True)
    stored = prepare(extract, extract.corpus.split("train"))
    window, whole = stored.batch(slice(1, 4)).states, stored.batch(slice(0, 9)).states
    assert window.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()


def both_splits(extract: Extractor) -> dict[str, Sequence[Utterance]]:
    return {split: extract.corpus.split(split) for split in ("train", "dev")}


def test_the_budget_holds_the_first_splits_and_counts_all_work() -> None:
    extract = extractor()
    done: list[int] = []
    splits = both_splits(extract)
    sizes = {
        split: sum(extract([utterance])[0].nbytes for utterance in items)
        for split, items in splits.items()
    }
    store = FeatureStore(extract, splits, FeatureStorage())
    assert sizes == {split: size_in_bytes(store, items) for split, items in splits.items()}
    features = prepare_features(
        extract, splits, done.append, FeatureStorage(sizes["train"] + sizes["dev"] // 2)
    )
    assert {split: stored.location for split, stored in features.items()} == {
        "train": "memory",
        "dev": "mixed",
    }
    assert sum(done) == 14
    assert all(
        stored.location == "memory"
        for stored in prepare_features(extract, splits, done.append).values()
    )
    means = prepare_features(
        extractor(pooled=True), splits, done.append, FeatureStorage(memory_bytes=0)
    )
    assert all(stored.location == "memory" for stored in means.values())


@pytest.mark.parametrize("pooled", [True, False])
def test_features_are_the_same_wherever_they_are_stored(pooled: bool, tmp_path: Path) -> None:
    """In memory, on disk, read from disk into memory, recomputed: no bit differs. The disk is read
    before the encoder runs."""
    splits = both_splits(extractor())
    cache = FeatureCache(tmp_path, budget_bytes=1 << 20)
    storages = {
        "memory": FeatureStorage(),
        "disk": FeatureStorage(0, cache, "an encoder"),
        "recomputed": FeatureStorage(
            0, FeatureCache(tmp_path / "small", budget_bytes=1), "an encoder"
        ),
    }
    indices = torch.tensor([4, 0, 3])
    expected = prepare_features(extractor(pooled), splits, lambda count: None)
    for location, storage in storages.items():
        extract = extractor(pooled)
        features = prepare_features(extract, splits, lambda count: None, storage)
        assert {stored.location for stored in features.values()} == {
            "memory" if pooled and location == "recomputed" else location
        }
        for split, stored in features.items():
            for selected in (indices, slice(1, 4)):
                batch, same = stored.batch(selected), expected[split].batch(selected)
                assert torch.equal(batch.states, same.states)
                assert torch.equal(batch.frames, same.frames)
    again = extractor(pooled)
    assert {
        stored.location
        for stored in prepare_features(again, splits, lambda count: None, storages["disk"]).values()
    } == {"disk"}
    assert again.encoded_count == 0
    other = extractor(pooled)
    prepare_features(other, splits, lambda count: None, FeatureStorage(0, cache, "another encoder"))
    assert other.encoded_count == 14


def test_too_short_an_utterance_is_named() -> None:
    corpus = toy_corpus({"train": 1})
    short = Corpus(
        name="short",
        fingerprint="0",
        utterances=corpus.utterances,
        read=lambda utterance: np.zeros(399, dtype=np.float32),
    )
    with pytest.raises(
        UserError, match=r"`train-0` of the corpus `short` has 399 samples, less than one frame"
    ):
        Extractor(ToyEncoder(), short, CPU, True)([corpus.utterances[0]])


NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
]


class SmallMemory(ToyEncoder):
    """Has memory for so many samples of padded audio at once."""

    def __init__(self, samples: int, error: RuntimeError = NO_MEMORY[0]) -> None:
        super().__init__()
        self.samples, self.error, self.tried = samples, error, list[int]()

    def hidden_states(self, waves: Sequence[torch.Tensor]) -> HiddenStates:
        self.tried.append(len(waves) * max(map(len, waves)))
        if self.tried[-1] > self.samples:
            raise self.error
        return super().hidden_states(waves)


@pytest.mark.parametrize("error", NO_MEMORY)
@pytest.mark.parametrize("pooled", [False, True])
def test_a_batch_that_is_too_large_for_the_memory_is_encoded_in_parts(
    pooled: bool, error: RuntimeError
) -> None:
    corpus = toy_corpus({"train": 9, "dev": 5})
    longest = max(item.samples for item in corpus.utterances)
    encoder = SmallMemory(3 * longest, error)
    extract = Extractor(encoder, corpus, CPU, pooled, rule=PADDED)
    expected = Extractor(ToyEncoder(), corpus, CPU, pooled, rule=PADDED)(corpus.utterances)
    for _ in range(2):
        for states, alone in zip(extract(corpus.utterances), expected, strict=True):
            torch.testing.assert_close(states, alone, rtol=2**-10, atol=1e-5)
    too_large = [tried for tried in encoder.tried if tried > 3 * longest]
    assert len(too_large) == len(set(too_large)) < 4  # a size that did not fit is not tried again


def test_one_recording_that_is_too_long_for_the_memory_is_said() -> None:
    corpus = toy_corpus({"train": 9})
    extract = Extractor(SmallMemory(1), corpus, CPU, True, rule=PADDED)
    with pytest.raises(UserError, match=r"too small for one recording of \d+ s: cut the recording"):
        extract(corpus.utterances)


def test_the_cache_of_the_gpu_is_emptied_only_when_its_memory_ran_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Later batches of that size are halved before they are tried."""
    times: list[int] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: times.append(1))
    corpus = toy_corpus({"train": 9, "dev": 5})
    encoder = SmallMemory(3 * max(item.samples for item in corpus.utterances))
    with fake_cuda():
        extract = Extractor(encoder, corpus, torch.device("cuda"), False)
        extract(corpus.utterances)
        assert len(times) == sum(tried > encoder.samples for tried in encoder.tried) > 0
        extract(corpus.utterances)
        assert len(times) == sum(tried > encoder.samples for tried in encoder.tried)
