"""Features: normalised, independent of company and order, kept within a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speechft_ray.core.errors import UserError
from speechft_ray.speech.corpora.base import Corpus, Utterance
from speechft_ray.speech.encoders.base import HiddenStates
from speechft_ray.speech.features.cache import FeatureCache
from speechft_ray.superb.features import (
    Extractor,
    FeatureStorage,
    InMemoryFeatures,
    OnTheFlyFeatures,
    prepare_features,
    size_in_bytes,
)
from tests.superb.toy_models import DIM, STATE_COUNT, ToyEncoder, toy_corpus

CPU = torch.device("cpu")


def extractor(pooled: bool = False, **corpus: Any) -> Extractor:
    return Extractor(ToyEncoder(), toy_corpus({"train": 9, "dev": 5}, **corpus), CPU, pooled)


def normalised_by_numpy(utterance: Utterance) -> np.ndarray:
    encoder, corpus = ToyEncoder(), toy_corpus({"train": 9, "dev": 5})
    found: HiddenStates = encoder.hidden_states([torch.from_numpy(corpus.read(utterance))])
    values = torch.stack(found.states)[:, 0].detach().double().numpy()
    centred = values - values.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)


def test_states_are_layer_normalised_and_pooling_averages_the_normalised_frames() -> None:
    frames, means = extractor(pooled=False), extractor(pooled=True)
    utterance = frames.corpus.utterances[3]
    expected = normalised_by_numpy(utterance)
    np.testing.assert_allclose(
        frames([utterance])[0].numpy(), expected, rtol=2**-11, atol=1e-5
    )  # float16 has 11 bits
    np.testing.assert_allclose(
        means([utterance])[0].numpy(), expected.mean(axis=1, keepdims=True), atol=1e-6
    )


def test_padding_frames_of_an_encoder_are_cut_off() -> None:
    class Padding(ToyEncoder):
        def hidden_states(self, waves):
            states, frames = super().hidden_states(waves)
            return HiddenStates(states, frames - 2)

    whole, cut = extractor(), extractor()
    cut.encoder = Padding()
    utterance = whole.corpus.utterances[0]
    assert torch.equal(whole([utterance])[0][:, :-2], cut([utterance])[0])


def test_encoding_is_frozen_and_one_by_one() -> None:
    extract = extractor()
    extract.encoder.module().train()
    extract = Extractor(extract.encoder, extract.corpus, CPU, False)
    kept = InMemoryFeatures.of(extract, extract.corpus.split("train"), lambda count: None)
    assert not extract.encoder.module().training
    assert not kept.states.requires_grad
    assert extract.encoder.calls == [1] * 9
    assert extract.seconds > 0


@pytest.mark.parametrize("pooled", [True, False])
def test_order_and_company_change_no_bit(pooled: bool) -> None:
    extract = extractor(pooled)
    utterances = extract.corpus.split("train")
    kept = InMemoryFeatures.of(extract, utterances, lambda count: None)
    backwards = InMemoryFeatures.of(extract, utterances[::-1], lambda count: None)
    anew = OnTheFlyFeatures(extract, utterances)
    for place, utterance in enumerate(utterances):
        alone = extract([utterance])[0]
        for source, position in (
            (kept, place),
            (backwards, len(utterances) - 1 - place),
            (anew, place),
        ):
            batch = source.batch(slice(position, position + 1))
            assert torch.equal(batch.states, alone.float())
            assert batch.frames.tolist() == [alone.shape[1]]


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("chosen", [slice(2, 6), torch.tensor([4, 0, 0, 8])])
def test_kept_and_reencoded_features_are_the_same(
    pooled: bool, chosen: slice | torch.Tensor
) -> None:
    extract = extractor(pooled)
    utterances = extract.corpus.split("train")
    kept, anew = (
        InMemoryFeatures.of(extract, utterances, lambda count: None).batch(chosen),
        OnTheFlyFeatures(extract, utterances).batch(chosen),
    )
    assert torch.equal(kept.states, anew.states)
    assert torch.equal(kept.frames, anew.frames)
    assert kept.states.shape == (STATE_COUNT, int(kept.frames.sum()), DIM)


def test_a_window_of_kept_means_is_a_view() -> None:
    extract = extractor(pooled=True)
    kept = InMemoryFeatures.of(extract, extract.corpus.split("train"), lambda count: None)
    window = kept.batch(slice(1, 4)).states
    assert window.untyped_storage().data_ptr() == kept.states.untyped_storage().data_ptr()


def both_splits(extract: Extractor) -> dict[str, list[Utterance]]:
    return {split: extract.corpus.split(split) for split in ("train", "dev")}


def test_the_budget_keeps_the_first_splits_and_counts_all_work() -> None:
    extract, done = extractor(), []
    splits = both_splits(extract)
    sizes = {
        split: sum(extract([utterance])[0].nbytes for utterance in items)
        for split, items in splits.items()
    }
    assert sizes == {split: size_in_bytes(extract, items) for split, items in splits.items()}
    found = prepare_features(
        extract, splits, done.append, FeatureStorage(sizes["train"] + sizes["dev"] // 2)
    )
    assert {split: source.location for split, source in found.items()} == {
        "train": "memory",
        "dev": "nowhere",
    }
    assert sum(done) == 14
    assert all(
        source.location == "memory"
        for source in prepare_features(extract, splits, done.append).values()
    )
    means = prepare_features(
        extractor(pooled=True), splits, done.append, FeatureStorage(memory_bytes=0)
    )
    assert all(source.location == "memory" for source in means.values())


@pytest.mark.parametrize("pooled", [True, False])
def test_features_are_the_same_wherever_they_lie(pooled: bool, tmp_path: Path) -> None:
    """In memory, on disk, read from disk into memory, encoded anew: not a bit differs, and disk is
    asked before the encoder."""
    splits = both_splits(extractor())
    cache = FeatureCache(tmp_path, budget_bytes=1 << 20)
    places = {
        "memory": FeatureStorage(),
        "disk": FeatureStorage(0, cache, "an encoder"),
        "nowhere": FeatureStorage(
            0, FeatureCache(tmp_path / "small", budget_bytes=1), "an encoder"
        ),
    }
    chosen = torch.tensor([4, 0, 3])
    expected = prepare_features(extractor(pooled), splits, lambda count: None)
    for location, storage in places.items():
        extract = extractor(pooled)
        found = prepare_features(extract, splits, lambda count: None, storage)
        assert {source.location for source in found.values()} == {
            "memory" if pooled and location == "nowhere" else location
        }
        for split, source in found.items():
            for part in (chosen, slice(1, 4)):
                assert torch.equal(source.batch(part).states, expected[split].batch(part).states)
                assert torch.equal(source.batch(part).frames, expected[split].batch(part).frames)
    again = extractor(pooled)
    assert {
        source.location
        for source in prepare_features(again, splits, lambda count: None, places["disk"]).values()
    } == {"disk"}
    assert again.encoded == 0
    other = extractor(pooled)
    prepare_features(other, splits, lambda count: None, FeatureStorage(0, cache, "another encoder"))
    assert other.encoded == 14


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
