"""The front end is computed once for all encoders that have the same, and changes no bit of what
they yield."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from speechft_ray.core.specs import CorpusSpec, EvalSpec
from speechft_ray.speech.batching import EQUAL_LENGTHS, PADDED, BatchRule
from speechft_ray.speech.checkpoints.load import weights_fingerprint
from speechft_ray.speech.corpora.base import Utterance
from speechft_ray.speech.encoders.base import FAMILIES, EncoderWeights
from speechft_ray.speech.features.cache import FeatureCache
from speechft_ray.speech.features.front_end import SharedFrontEnd
from speechft_ray.superb import extractor as extractor_module
from speechft_ray.superb.evaluate import SharedCaches, evaluate
from speechft_ray.superb.extractor import Extractor
from speechft_ray.superb.feature_store import FeatureStorage
from speechft_ray.superb.features import prepare_features
from tests.speech.toy_models import toy_encoder
from tests.superb.toy_models import toy_corpus

CORPUS = toy_corpus({"train": 5, "dev": 3})
SPLITS = {split: CORPUS.split(split) for split in ("train", "dev")}
PREFIX = "feature_extractor."
CPU = torch.device("cpu")


def perturb(weights: EncoderWeights, seed: int, front_end: bool = False) -> EncoderWeights:
    """Returns changed weights; those of the front end only with ``front_end``."""
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: value + 0.01 * torch.randn(value.shape, generator=generator)
        if front_end or not name.startswith(PREFIX)
        else value
        for name, value in weights.state.items()
    }
    return replace(weights, state=state)


def extract_features(
    weights: EncoderWeights,
    cache: FeatureCache | None,
    pooled: bool = True,
    rule: BatchRule = EQUAL_LENGTHS,
) -> tuple[list[torch.Tensor], int]:
    """The features of both splits, and how many utterances went through the front end."""
    family = FAMILIES.get(weights.family)
    encoder = family.build(weights)
    shape = family.describe(weights.config)
    front = SharedFrontEnd(cache, encoder.module(), PREFIX, shape, CORPUS) if cache else None
    extractor = Extractor(encoder, CORPUS, torch.device("cpu"), pooled, front, rule=rule)
    features = prepare_features(extractor, SPLITS, lambda count: None)
    states = [stored.batch(slice(0, stored.count)).states for stored in features.values()]
    return states, front.computed if front else 8


@pytest.mark.parametrize("family", ["hubert", "wav2vec2", "wavlm"])
@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("rule", [EQUAL_LENGTHS, PADDED], ids=["equal", "padded"])
def test_encoders_that_differ_behind_it_share_one(
    family: str, pooled: bool, rule: BatchRule, tmp_path: Path
) -> None:
    """Under one rule, values from the cache are bit for bit the computed ones."""
    cache = FeatureCache(tmp_path, budget_bytes=1 << 24)
    start = toy_encoder(family)
    computed_counts = []
    for weights in (start, perturb(start, 1), perturb(start, 2)):
        alone, _ = extract_features(weights, None, pooled, rule)
        shared, computed = extract_features(weights, cache, pooled, rule)
        assert all(torch.equal(states, other) for states, other in zip(shared, alone, strict=True))
        computed_counts.append(computed)
    assert computed_counts == [8, 0, 0]
    _, computed = extract_features(perturb(start, 1, front_end=True), cache, pooled, rule)
    assert computed == 8


@pytest.mark.parametrize("memory_bytes", [1 << 24, 0], ids=["stored", "on the fly"])
@pytest.mark.parametrize("pooled", [True, False])
def test_audio_is_not_read_where_the_front_end_is_stored(
    pooled: bool, memory_bytes: int, tmp_path: Path
) -> None:
    reads: list[str] = []

    def read(utterance: Utterance) -> np.ndarray:
        reads.append(utterance.key)
        return CORPUS.read(utterance)

    corpus, cache = replace(CORPUS, read=read), FeatureCache(tmp_path, budget_bytes=1 << 24)
    family, start = FAMILIES.get("hubert"), toy_encoder("hubert")
    expected, _ = extract_features(perturb(start, 1), None, pooled)
    for weights, count in ((start, 8), (perturb(start, 1), 0)):
        reads.clear()
        encoder = family.build(weights)
        front = SharedFrontEnd(
            cache, encoder.module(), PREFIX, family.describe(weights.config), corpus
        )
        extractor = Extractor(encoder, corpus, CPU, pooled, front)
        storage = FeatureStorage(memory_bytes=memory_bytes)
        features = prepare_features(extractor, SPLITS, lambda count: None, storage)
        states = [stored.batch(slice(0, stored.count)).states for stored in features.values()]
        assert len(reads) == count
    assert all(torch.equal(one, other) for one, other in zip(states, expected, strict=True))


@pytest.mark.parametrize("pooled", [True, False])
def test_both_rules_give_the_same_features(pooled: bool) -> None:
    """Means to the rounding of float32, frame states to that of the float16 that they are stored
    in."""
    weights = toy_encoder("hubert")
    equal, padded = (
        extract_features(weights, None, pooled, rule)[0] for rule in (EQUAL_LENGTHS, PADDED)
    )
    for states, others in zip(equal, padded, strict=True):
        torch.testing.assert_close(others, states, atol=1e-5, rtol=0.0 if pooled else 2**-10)


@pytest.mark.parametrize("rule", [EQUAL_LENGTHS, PADDED], ids=["equal", "padded"])
def test_fine_tuning_and_evaluation_write_the_same_values(rule: BatchRule, tmp_path: Path) -> None:
    weights, utterances, files = toy_encoder("hubert"), SPLITS["train"], []
    for name in ("finetuning", "evaluation"):
        family, cache = FAMILIES.get("hubert"), FeatureCache(tmp_path / name, 1 << 24)
        encoder = family.build(weights)
        front = SharedFrontEnd(
            cache, encoder.module(), PREFIX, family.describe(weights.config), CORPUS
        )
        extractor = Extractor(encoder, CORPUS, torch.device("cpu"), True, front, rule=rule)
        if name == "evaluation":
            prepare_features(extractor, {"train": utterances}, lambda count: None)
        else:
            front.load_or_compute(
                encoder,
                utterances,
                lambda item: torch.from_numpy(CORPUS.read(item)),
                lambda count: None,
                rule=rule,
            )
        assert front.computed == len(utterances)
        files.append(next((tmp_path / name).glob("features/*/rows.bin")).read_bytes())
    assert len({item.samples for item in utterances}) > 1
    assert files[0] == files[1]


def test_without_cache_space_every_encoder_computes_its_own(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, budget_bytes=1)
    assert [extract_features(toy_encoder("hubert"), cache)[1] for _ in range(2)] == [8, 8]


def test_a_changed_byte_is_detected(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, budget_bytes=1 << 24)
    expected, _ = extract_features(toy_encoder("hubert"), cache)
    for path in tmp_path.glob("features/*/rows.bin"):
        path.write_bytes(path.read_bytes()[:-4] + b"\x00\x00\xc0\x7f")
    features, computed = extract_features(toy_encoder("hubert"), cache)
    assert computed == 8
    assert all(torch.equal(states, other) for states, other in zip(features, expected, strict=True))


def test_the_encoder_is_left_as_it_was(tmp_path: Path) -> None:
    weights = toy_encoder("hubert")
    encoder = FAMILIES.get("hubert").build(weights)
    own = encoder.module().get_submodule("feature_extractor")
    cache = FeatureCache(tmp_path, budget_bytes=1 << 24)
    front = SharedFrontEnd(
        cache, encoder.module(), PREFIX, FAMILIES.get("hubert").describe(weights.config), CORPUS
    )
    for _ in range(2):
        prepare_features(
            Extractor(encoder, CORPUS, torch.device("cpu"), True, front),
            SPLITS,
            lambda count: None,
            FeatureStorage(),
        )
        assert encoder.module().get_submodule("feature_extractor") is own
        assert not own._forward_hooks


@pytest.mark.parametrize("task", ["pr", "sid"])
def test_an_evaluation_encodes_each_utterance_once_and_a_sweep_its_front_end(
    task: str, tmp_path: Path
) -> None:
    """Train, dev and test alike; what the second encoder scores is what it scores alone."""
    corpus = toy_corpus({"train": 8, "dev": 3, "test": 5})
    cache, family, start = (
        FeatureCache(tmp_path, budget_bytes=1 << 24),
        FAMILIES.get("hubert"),
        toy_encoder("hubert"),
    )
    spec = EvalSpec(task=task, corpus=CorpusSpec(), updates=2, batch_size=4)
    calls: dict[str, list[int]] = {"feature_extractor": [], "encoder": []}
    for weights in (start, perturb(start, 1)):
        encoder = family.build(weights)
        alone = evaluate(spec, encoder, corpus, torch.device("cpu"), lambda _: None)
        for name, counts in calls.items():
            counts.append(0)
            getattr(encoder.module(), name).register_forward_hook(partial(_count, counts))
        own = SharedCaches(
            cache=cache,
            encoder=weights_fingerprint(weights),
            front_end=(PREFIX, family.describe(weights.config)),
        )
        shared = evaluate(spec, encoder, corpus, torch.device("cpu"), lambda _: None, caches=own)
        assert shared["scores"] == alone["scores"]
    assert calls == {"feature_extractor": [16, 0], "encoder": [16, 16]}


@pytest.mark.parametrize("rule", [EQUAL_LENGTHS, PADDED], ids=["equal", "padded"])
def test_precisions_share_nothing_and_what_is_read_is_what_was_computed(
    rule: BatchRule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extractor_module, "choose_rule", lambda device_type: rule)
    corpus, weights = toy_corpus({"train": 8, "dev": 3, "test": 5}), toy_encoder("hubert")
    family = FAMILIES.get("hubert")
    caches = SharedCaches(
        cache=FeatureCache(tmp_path, budget_bytes=1 << 24),
        encoder=weights_fingerprint(weights),
        front_end=(PREFIX, family.describe(weights.config)),
    )
    spec = EvalSpec(task="pr", corpus=CorpusSpec(), updates=4, batch_size=4)
    weights_of = []
    for precision in ("float32", "bfloat16"):
        own = spec.model_copy(update={"precision": precision})
        facts = [
            evaluate(own, family.build(weights), corpus, CPU, lambda _: None, caches=stored)
            for stored in (None, caches, caches)
        ]
        assert facts[0]["layer_weights"] == facts[1]["layer_weights"] == facts[2]["layer_weights"]
        weights_of.append(facts[0]["layer_weights"])
    assert weights_of[0] != weights_of[1]


def _count(
    counts: list[int], module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: object
) -> None:
    counts[-1] += len(inputs[0])
