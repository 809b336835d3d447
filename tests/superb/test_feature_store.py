"""Features are encoded once for all tasks of a corpus, as far as the budget goes, in every form."""

from __future__ import annotations

import resource
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from speechft_ray.core.specs import CorpusSpec, EvalSpec
from speechft_ray.speech.checkpoints.load import weights_fingerprint
from speechft_ray.speech.corpora.base import AudioSource, CorpusFiles, Utterance
from speechft_ray.speech.encoders.base import FAMILIES, Encoder, EncoderWeights
from speechft_ray.speech.features.cache import FeatureCache
from speechft_ray.speech.features.front_end import SharedFrontEnd
from speechft_ray.superb.evaluate import SharedCaches, evaluate
from speechft_ray.superb.extractor import Extractor
from speechft_ray.superb.feature_store import FeatureStorage, FeatureStore
from speechft_ray.superb.features import load_features, open_features, prepare_features
from speechft_ray.superb.row_features import RowFeatures
from speechft_ray.superb.storage_facts import describe_storage
from tests.speech.toy_models import toy_encoder, toy_hubert
from tests.superb.toy_models import toy_corpus

COUNTS = {"train": 12, "dev": 4, "test": 4}
CORPUS = toy_corpus(COUNTS)
SPLITS = {split: CORPUS.split(split) for split in COUNTS}
CPU = torch.device("cpu")
HUBERT = FAMILIES.get("hubert")
PREFIX = HUBERT.front_end_prefixes[0]
PLENTY = 1 << 26
FORMS: tuple[dict[str, Any], ...] = (
    {},
    {"form": "int8"},
    {"form": "compact", "rank": 0.99},
    {"form": "compact", "rank": 5},
)


def no_source(key: str) -> AudioSource:
    raise AssertionError(f"nothing reads the file of {key}")


class Passes:
    """Counts the utterances that go through the front end and the transformer of an encoder."""

    def __init__(self, encoder: Encoder) -> None:
        self.front_ends = self.encodings = 0
        module: Any = encoder.module()
        module.feature_extractor.conv_layers[0].register_forward_hook(self._count_front_end)
        module.encoder.register_forward_hook(self._count_encoding)

    def _count_front_end(self, module: Any, inputs: Any, output: Any) -> None:
        self.front_ends += len(inputs[0])

    def _count_encoding(self, module: Any, inputs: Any, output: Any) -> None:
        self.encodings += len(inputs[0])


def perturb(weights: EncoderWeights) -> EncoderWeights:
    """Returns another encoder with the same front end."""
    state = {
        name: value if name.startswith(PREFIX) else value * 1.01
        for name, value in weights.state.items()
    }
    return replace(weights, state=state)


def make_extractor(
    weights: EncoderWeights, cache: FeatureCache | None = None
) -> tuple[Extractor, Passes]:
    encoder = HUBERT.build(weights)
    shape = HUBERT.describe(weights.config)
    front = SharedFrontEnd(cache, encoder.module(), PREFIX, shape, CORPUS) if cache else None
    return Extractor(encoder, CORPUS, CPU, False, front), Passes(encoder)


def read_twice(
    store: FeatureStore, splits: Mapping[str, Sequence[Utterance]]
) -> dict[str, list[torch.Tensor]]:
    """Loads the splits and reads each utterance twice; returns the states of the second time."""
    features = load_features(store, splits, lambda _: None)
    for stored in features.values():
        stored.batch(slice(0, stored.count))
    return {
        split: [stored.batch(torch.tensor([i])).restore() for i in range(stored.count)]
        for split, stored in features.items()
    }


@pytest.mark.parametrize("features", [{}, {"features": "int8"}, {"features": "compact"}])
def test_tasks_of_one_corpus_encode_each_utterance_once_and_a_sweep_its_front_end(
    features: dict[str, Any], tmp_path: Path
) -> None:
    """Two CTC tasks and the first one again, for two encoders, at default settings."""
    cache = FeatureCache(tmp_path, PLENTY)
    totals = []
    for weights in (toy_encoder("hubert"), perturb(toy_encoder("hubert"))):
        encoder = HUBERT.build(weights)
        passes = Passes(encoder)
        shared = SharedCaches(
            cache=cache,
            encoder=weights_fingerprint(weights),
            front_end=(PREFIX, HUBERT.describe(weights.config)),
        )
        scores = []
        for task in ("pr", "chars", "pr"):
            small: dict[str, Any] = {"projection": 8, "lstm_layers": 1, "lstm_hidden": 8}
            spec = EvalSpec(
                task=task,
                corpus=CorpusSpec(),
                updates=2,
                batch_size=4,
                options=small if task == "chars" else {},
                **features,
            )
            facts = evaluate(spec, encoder, CORPUS, CPU, lambda _: None, caches=shared)
            scores.append(facts["scores"])
        assert scores[0] == scores[2]
        totals.append((passes.encodings, passes.front_ends))
    count = sum(COUNTS.values())
    assert totals == [(count, count), (count, 0)]


def count_open_files() -> int:
    return sum(1 for _ in Path("/dev/fd").iterdir())


@contextmanager
def allow_more_files(count: int) -> Iterator[int]:
    """Lets this process open so many more files, until it raises the limit; yields how many are
    open."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    is_open = count_open_files()
    resource.setrlimit(resource.RLIMIT_NOFILE, (is_open + count, limits[1]))
    try:
        yield is_open
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("memory_bytes", [PLENTY, 0])
def test_more_shards_than_a_process_may_open_files(memory_bytes: int, tmp_path: Path) -> None:
    """A corpus of 1,000 hours has 2,000 shards. What was read into memory leaves no file open."""
    extractor, _ = make_extractor(toy_encoder("hubert"))
    storage = FeatureStorage(memory_bytes, FeatureCache(tmp_path, PLENTY), "toy", shard_frames=1)
    store = FeatureStore(extractor, SPLITS, storage)
    with allow_more_files(15) as before:
        features = load_features(store, SPLITS, lambda _: None)
        assert {each.location for each in features.values()} == {
            "memory" if memory_bytes else "disk"
        }
        after = count_open_files()
    assert after - before == (0 if memory_bytes else sum(COUNTS.values()))
    for split, each in features.items():
        assert each.batch(slice(0, each.count)).states.shape[1] > len(SPLITS[split])


@pytest.mark.parametrize("fields", FORMS)
@pytest.mark.parametrize("share", [1.0, 0.6, 0.0])
def test_what_fits_is_encoded_once_and_the_rest_for_every_batch(
    fields: dict[str, Any], share: float, tmp_path: Path
) -> None:
    """No number depends on what fits."""
    weights = toy_encoder("hubert")
    alone, _ = make_extractor(weights)
    in_memory = FeatureStore(alone, SPLITS, FeatureStorage(**fields))
    expected = read_twice(in_memory, SPLITS)
    basis = in_memory.form.basis
    budget = share * sum(map(in_memory.count_bytes, in_memory.utterances))
    budget += sum(tensor.nbytes for tensor in basis) if basis and share else 0
    extract, passes = make_extractor(weights)
    cache = FeatureCache(tmp_path, int(budget))
    storage = FeatureStorage(0, cache, "toy", shard_frames=30, **fields)
    store = FeatureStore(extract, SPLITS, storage)
    states = read_twice(store, SPLITS)
    for split, items in expected.items():
        assert all(map(torch.equal, items, states[split]))
    again, rest = passes.encodings, store.count - store.stored_count
    assert abs(store.stored_count / store.count - share) < 0.1
    # Written once, or encoded in both passes; the sample of the basis is encoded before.
    sample = 12 if basis else 0
    stored_in_sample = min(sample, store.stored_count)
    assert again == sample + (store.stored_count - stored_in_sample) + 2 * rest
    assert store.recomputed_count == rest
    notes = describe_storage(store).get("notes", [])
    assert bool(notes) == (rest > 0)


def test_what_is_encoded_anew_reads_the_front_end_as_far_as_it_fits(tmp_path: Path) -> None:
    """Four states of 16 are four times the 8 channels in float32, so front ends come first."""
    weights = toy_hubert(encoder_layers=3)
    alone, _ = make_extractor(weights)
    in_memory = FeatureStore(alone, SPLITS, FeatureStorage())
    expected = read_twice(in_memory, SPLITS)
    front_end_bytes = sum(map(in_memory.count_bytes, in_memory.utterances)) // 4
    for name, share, front_ends in (("all", 1.0, [20, 0]), ("half", 0.5, [30, 20])):
        cache = FeatureCache(tmp_path / name, int(share * front_end_bytes))
        counts = []
        for encoder in (weights, perturb(weights)):
            extract, passes = make_extractor(encoder, cache)
            store = FeatureStore(extract, SPLITS, FeatureStorage(0, cache, "toy"))
            states = read_twice(store, SPLITS)
            counts.append((passes.encodings, passes.front_ends))
            if encoder is weights:
                for split, items in expected.items():
                    assert all(map(torch.equal, items, states[split]))
        assert [encodings for encodings, _ in counts] == [40, 40]
        for (_, computed), planned in zip(counts, front_ends, strict=True):
            assert abs(computed - planned) <= 2


def test_means_on_disk_stay_there_when_others_do_not_fit(tmp_path: Path) -> None:
    """One shard without room once put the means of the whole split into memory, on a GPU into
    its own."""
    extractor, passes = make_extractor(toy_encoder("hubert"))
    extractor.pooled = True
    in_memory = prepare_features(extractor, SPLITS, lambda _: None)
    cache = FeatureCache(tmp_path, 10 * 4 * 2 * 16)  # ten means, float32, of two states of 16
    storage = FeatureStorage(0, cache, "toy", shard_frames=60)
    store = FeatureStore(extractor, SPLITS, storage)
    assert 0 < store.stored_count < len(SPLITS["train"])
    before, advances = passes.encodings, list[int]()
    features = load_features(store, SPLITS, advances.append)
    locations = {split: each.location for split, each in features.items()}
    assert locations == {"train": "mixed", "dev": "memory", "test": "memory"}
    assert isinstance(features["train"], RowFeatures)
    for split, each in features.items():
        every = slice(0, each.count)
        assert torch.equal(each.batch(every).states, in_memory[split].batch(every).states)
    assert passes.encodings - before == sum(advances) == sum(COUNTS.values())
    assert store.recomputed_count == 0


def test_a_list_without_some_utterances_reads_what_the_whole_list_stored(tmp_path: Path) -> None:
    weights = toy_encoder("hubert")
    cache = FeatureCache(tmp_path, PLENTY)
    for splits in (SPLITS, {split: items[1:] for split, items in SPLITS.items()}):
        extract, passes = make_extractor(weights)
        expected = [extract([item])[0].float() for item in splits["train"]]
        before = passes.encodings
        features = prepare_features(
            extract, splits, lambda _: None, FeatureStorage(0, cache, "toy")
        )
        assert passes.encodings - before == (20 if splits is SPLITS else 0)
        for index, states in enumerate(expected):
            assert torch.equal(features["train"].batch(torch.tensor([index])).states, states)


def test_a_corpus_that_changes_every_wave_has_features_of_its_own(tmp_path: Path) -> None:
    """Speech Commands is read with a gain; a manifest of the same files is not."""
    encoder = HUBERT.build(toy_encoder("hubert"))
    audio = {utterance.key: f"sha256 of {utterance.key}" for utterance in CORPUS.utterances}
    cache = FeatureCache(tmp_path, PLENTY)

    def read_states(transform: str, gain: float) -> torch.Tensor:
        corpus = replace(
            CORPUS,
            fingerprint=transform,
            audio_ids=audio,
            read=lambda utterance: CORPUS.read(utterance) * gain,
            files=CorpusFiles(root=tmp_path, source_of=no_source, transform=transform),
        )
        extract = Extractor(encoder, corpus, CPU, False, None)
        features = prepare_features(
            extract, SPLITS, lambda _: None, FeatureStorage(0, cache, "toy")
        )
        states = features["train"].batch(torch.tensor([0])).states
        assert torch.equal(states.float(), extract([CORPUS.split("train")[0]])[0].float())
        return states

    plain, quiet = read_states("", 1.0), read_states("gain", 0.01)
    assert not torch.allclose(plain.float(), quiet.float(), atol=1e-2)
    assert torch.equal(plain, read_states("", 1.0))


def test_a_job_that_was_killed_keeps_its_complete_shards(tmp_path: Path) -> None:
    weights = toy_encoder("hubert")
    storage = FeatureStorage(0, FeatureCache(tmp_path, PLENTY), "toy", shard_frames=60)
    extract, passes = make_extractor(weights)
    store = FeatureStore(extract, SPLITS, storage)
    encode = extract._encode

    def encode_until_killed(waves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        if passes.encodings >= 16:
            raise KeyboardInterrupt
        return encode(waves)

    extract._encode = encode_until_killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        load_features(store, SPLITS, lambda _: None)
    again, second = make_extractor(weights)
    advances: list[int] = []
    load_features(FeatureStore(again, SPLITS, storage), SPLITS, advances.append)
    longest_shard = max(len(shard) for shard in store._shards)
    assert 20 - 16 <= second.encodings <= 20 - 16 + longest_shard < 20
    assert sum(advances) == 20


@contextmanager
def limit_file_size(size_bytes: int) -> Iterator[None]:
    """No file of this process may grow above this: writing fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_on_a_full_disk_features_are_encoded_from_there_on(tmp_path: Path) -> None:
    weights = toy_encoder("hubert")
    alone, _ = make_extractor(weights)
    expected = read_twice(FeatureStore(alone, SPLITS, FeatureStorage()), SPLITS)
    cache = FeatureCache(tmp_path, PLENTY)
    extract, passes = make_extractor(weights, cache)
    store = FeatureStore(extract, SPLITS, FeatureStorage(0, cache, "toy"))
    with limit_file_size(10_000):
        states = read_twice(store, SPLITS)
        test = open_features(store, SPLITS["test"], lambda _: None)
        assert torch.equal(test.batch(slice(0, 1)).states, expected["test"][0])
    for split, items in expected.items():
        assert all(map(torch.equal, items, states[split]))
    assert cache.is_disk_full
    assert passes.encodings >= 40
    assert "the disk of the feature cache was full" in str(describe_storage(store)["notes"])
    assert not [path for path in tmp_path.glob("features/*") if path.name.startswith(".")]
