"""The front end is computed once for all encoders that have the same, and changes no bit of what
they yield."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from speechft_ray.core.specs import CorpusSpec, EvalSpec
from speechft_ray.speech.checkpoints.load import weights_fingerprint
from speechft_ray.speech.encoders.base import FAMILIES, EncoderWeights
from speechft_ray.speech.features.cache import FeatureCache
from speechft_ray.speech.features.front_end import SharedFrontEnd
from speechft_ray.superb.evaluate import SharedCaches, evaluate
from speechft_ray.superb.features import Extractor, FeatureStorage, prepare_features
from tests.speech.toy_models import toy_encoder
from tests.superb.toy_models import toy_corpus

CORPUS = toy_corpus({"train": 5, "dev": 3})
SPLITS = {split: CORPUS.split(split) for split in ("train", "dev")}
PREFIX = "feature_extractor."


def tuned(weights: EncoderWeights, seed: int, front_end: bool = False) -> EncoderWeights:
    """Other weights, everywhere but in the front end unless asked."""
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: value + 0.01 * torch.randn(value.shape, generator=generator)
        if front_end or not name.startswith(PREFIX)
        else value
        for name, value in weights.state.items()
    }
    return replace(weights, state=state)


def extracted(
    weights: EncoderWeights, cache: FeatureCache | None, pooled: bool = True
) -> tuple[list[torch.Tensor], int]:
    """The features of both splits, and how many utterances the front end really saw."""
    family = FAMILIES.get(weights.family)
    encoder = family.build(weights)
    shape = family.describe(weights.config)
    front = SharedFrontEnd(cache, encoder.module(), PREFIX, shape, CORPUS) if cache else None
    extract = Extractor(encoder, CORPUS, torch.device("cpu"), pooled, front)
    found = prepare_features(extract, SPLITS, lambda count: None)
    return [
        source.batch(slice(0, source.count)).states for source in found.values()
    ], front.computed if front else 8


@pytest.mark.parametrize("family", ["hubert", "wav2vec2", "wavlm"])
@pytest.mark.parametrize("pooled", [True, False])
def test_encoders_that_differ_behind_it_share_one(
    family: str, pooled: bool, tmp_path: Path
) -> None:
    cache = FeatureCache(tmp_path, budget_bytes=1 << 24)
    start = toy_encoder(family)
    seen = []
    for weights in (start, tuned(start, 1), tuned(start, 2)):
        alone, _ = extracted(weights, None, pooled)
        shared, computed = extracted(weights, cache, pooled)
        assert all(torch.equal(mine, other) for mine, other in zip(shared, alone, strict=True))
        seen.append(computed)
    assert seen == [8, 0, 0]
    _, computed = extracted(tuned(start, 1, front_end=True), cache, pooled)
    assert computed == 8


def test_without_room_every_encoder_computes_its_own(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, budget_bytes=1)
    assert [extracted(toy_encoder("hubert"), cache)[1] for _ in range(2)] == [8, 8]


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, budget_bytes=1 << 24)
    expected, _ = extracted(toy_encoder("hubert"), cache)
    for path in tmp_path.glob("features/*/rows.bin"):
        path.write_bytes(path.read_bytes()[:-4] + b"\x00\x00\xc0\x7f")
    found, computed = extracted(toy_encoder("hubert"), cache)
    assert computed == 8
    assert all(torch.equal(mine, other) for mine, other in zip(found, expected, strict=True))


def test_the_encoder_is_left_as_it_was(tmp_path: Path) -> None:
    weights = toy_encoder("hubert")
    encoder = FAMILIES.get("hubert").build(weights)
    own = encoder.module().feature_extractor
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
        assert encoder.module().feature_extractor is own
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
    seen: dict[str, list[int]] = {"feature_extractor": [], "encoder": []}
    for weights in (start, tuned(start, 1)):
        encoder = family.build(weights)
        alone = evaluate(spec, encoder, corpus, torch.device("cpu"), lambda _: None)
        for name, counts in seen.items():
            counts.append(0)
            getattr(encoder.module(), name).register_forward_hook(partial(_count, counts))
        own = SharedCaches(
            cache=cache,
            encoder=weights_fingerprint(weights),
            front_end=(PREFIX, family.describe(weights.config)),
        )
        shared = evaluate(spec, encoder, corpus, torch.device("cpu"), lambda _: None, caches=own)
        assert shared["scores"] == alone["scores"]
    assert seen == {"feature_extractor": [16, 0], "encoder": [16, 16]}


def _count(
    counts: list[int], module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: object
) -> None:
    counts[-1] += len(inputs[0])
