"""The work that is counted against what the code does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speechft_ray.core.specs import CorpusSpec, EvalSpec, FinetuneSpec
from speechft_ray.core.units import frame_count
from speechft_ray.cost import work as counting
from speechft_ray.cost.sizes import (
    EncoderSize,
    EvaluationSize,
    ObjectiveSize,
    TaskSize,
    frames,
    join_recordings,
    mean_batch_samples,
    measure_task,
)
from speechft_ray.cost.work import Work, WorkCounter, count_merge
from speechft_ray.speech.encoders.base import HiddenStates
from speechft_ray.speech.features.cache import FeatureCache
from speechft_ray.superb import evaluate as evaluating
from speechft_ray.superb.feature_store import FeatureStorage
from speechft_ray.superb.sampling import length_buckets, random_epochs, sliding_windows
from tests.superb.toy_models import DIM, STATE_COUNT, ToyEncoder, toy_corpus

CPU = torch.device("cpu")
TOY = EncoderSize(name="encoder", state_count=STATE_COUNT, dim=DIM, front_end_channels=0)
BASE = EncoderSize(name="encoder", state_count=13, dim=768, front_end_channels=512)


class RecordingEncoder(ToyEncoder):
    """Counts the samples that go through it."""

    def __init__(self) -> None:
        super().__init__()
        self.samples = 0

    def hidden_states(self, waves: Sequence[torch.Tensor]) -> HiddenStates:
        self.samples += sum(map(len, waves))
        return super().hidden_states(waves)


def encode_really(spec: EvalSpec, memory_bytes: int, cache: FeatureCache | None) -> float:
    """Evaluates on tones and returns the seconds of audio that were encoded."""
    encoder = RecordingEncoder()
    with pytest.MonkeyPatch.context() as patch:
        storage = FeatureStorage(memory_bytes=memory_bytes, cache=cache, encoder="e")
        patch.setattr(evaluating, "make_storage", lambda caches, spec: storage)
        evaluating.evaluate(spec, encoder, toy_corpus(), CPU, lambda values: None)
    return encoder.samples / 16_000


def count_encoded(spec: EvalSpec, memory_bytes: int, cache_bytes: float) -> float:
    size = EvaluationSize(folds=[measure_task(spec, toy_corpus(), "toy")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "MEMORY_BYTES", memory_bytes)
        work = WorkCounter(cache_bytes).count_evaluation(spec, size, TOY, "e")
    return work.encoded_seconds


def make_spec(task: str, **fields: Any) -> EvalSpec:
    return EvalSpec(task=task, corpus=CorpusSpec(), **{"updates": 12, "batch_size": 8, **fields})


@pytest.mark.parametrize("task", ["pr", "sid"])
@pytest.mark.parametrize(
    ("memory_bytes", "budget_bytes"), [(1 << 30, 0), (0, 1 << 30), (150_000, 1 << 30)]
)
def test_stored_features_are_encoded_as_often_as_counted(
    tmp_path: Path, task: str, memory_bytes: int, budget_bytes: int
) -> None:
    spec = make_spec(task)
    cache = FeatureCache(tmp_path, budget_bytes) if budget_bytes else None
    encoded = encode_really(spec, memory_bytes, cache)
    assert count_encoded(spec, memory_bytes, budget_bytes) == pytest.approx(encoded)


def test_a_screen_is_encoded_and_the_evaluation_behind_it_only_trains() -> None:
    spec = make_spec("sid")
    size = EvaluationSize(folds=[measure_task(spec, toy_corpus(), "toy")])

    def count(counter: WorkCounter, screens: bool) -> Work:
        return counter.count_evaluation(spec, size, TOY, "e", dev_only=True, screens=screens)

    counter = WorkCounter(1 << 30)
    screen, rest = count(counter, True), count(counter, False)
    whole = count(WorkCounter(1 << 30), False)
    assert screen.updates == rest.encoded_seconds == 0
    assert screen.encoded_seconds == whole.encoded_seconds > 0
    assert rest.updates == whole.updates == 12


def test_a_part_of_the_features_on_disk_is_counted_once(tmp_path: Path) -> None:
    spec = make_spec("pr", updates=60)
    budget_bytes = 150_000  # of 290,000
    encoded = encode_really(spec, 0, FeatureCache(tmp_path, budget_bytes))
    once = encode_really(spec, 1 << 30, None)
    assert encoded > 2 * once
    assert count_encoded(spec, 0, budget_bytes) == pytest.approx(encoded, rel=0.1)


def test_features_that_fit_nowhere_are_counted_for_every_draw() -> None:
    spec = make_spec("pr", updates=60)
    encoded = encode_really(spec, 0, None)
    once = encode_really(spec, 1 << 30, None)
    # Training reads a first batch for its shape; batches are random, their mean is what is counted.
    assert encoded > 4 * once
    assert count_encoded(spec, 0, 0) == pytest.approx(encoded, rel=0.05)


@pytest.mark.parametrize("sampling", ["windows", "buckets", "shuffled"])
def test_mean_batches_are_those_of_the_samplers(sampling: str) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(100_000, 400_000, 37)
    generator = torch.Generator().manual_seed(0)
    batches: Any = {
        "windows": sliding_windows(lengths.tolist(), 8, generator),
        "buckets": length_buckets(lengths.tolist(), 8, generator),
        "shuffled": random_epochs(len(lengths), 8, generator),
    }[sampling]
    # So many batches are whole epochs of each sampler.
    count = {"windows": 37, "buckets": 5, "shuffled": 5}[sampling]
    sums = [int(lengths[next(batches)].sum()) for _ in range(count)]
    assert mean_batch_samples(lengths, 8, sampling) == pytest.approx(np.mean(sums))


def test_frames_are_those_of_single_utterances() -> None:
    lengths = np.array([0, 399, 400, 719, 720, 16_000])
    assert frames(lengths).tolist() == list(map(frame_count, lengths.tolist()))


def test_a_front_end_is_computed_once_and_means_are_stored_once() -> None:
    spec = make_spec("sid")
    size = EvaluationSize(folds=[measure_task(spec, toy_corpus(), "toy")])
    counter = WorkCounter(1e9)
    works = [counter.count_evaluation(spec, size, BASE, key) for key in ("a", "b", "a")]
    audio = sum(item.seconds for item in toy_corpus().utterances)
    assert [work.encoded_seconds for work in works] == pytest.approx([audio, audio, 0])
    assert [work.front_end_seconds for work in works] == pytest.approx([audio, 0, 0])


def test_published_pr_of_a_base_encoder_is_what_the_design_calculates() -> None:
    """LibriSpeech-100's mean and number of utterances: 400 GB of exact frames in 50 GB, so that
    nearly all draws of 100,000 updates are encoded, but the front end once; in 500 GB each
    utterance is encoded once."""
    lengths = {"train": 28_539, "dev": 2_703, "test": 2_620}
    hours = {"train": 100.6, "dev": 5.4, "test": 5.4}
    splits = {
        name: np.full(count, round(hours[name] * 3600 / count * 16_000), np.int64)
        for name, count in lengths.items()
    }
    size = EvaluationSize(folds=[TaskSize(corpus="librispeech", splits=splits)])

    def count(cache_gb: float, **fields: Any) -> Work:
        every: dict[str, Any] = {"validate_every_updates": 100_000, **fields}
        spec = EvalSpec(task="pr", corpus=CorpusSpec(), updates=100_000, **every)
        return WorkCounter(cache_gb * 1e9).count_evaluation(spec, size, BASE, "e")

    few, some, all_fit, in_int8 = count(50), count(260), count(500), count(250, features="int8")
    assert few.encoded_seconds / 3600 == pytest.approx(11_290, rel=0.05)
    assert few.front_end_seconds / 3600 == pytest.approx(111.4, rel=0.01)
    assert 0.3 * few.encoded_seconds < some.encoded_seconds < 0.6 * few.encoded_seconds
    assert all_fit.encoded_seconds / 3600 == pytest.approx(111.4, rel=0.001)
    assert all_fit.cache_bytes == pytest.approx(400e9 + 41e9, rel=0.01)
    assert in_int8.encoded_seconds == all_fit.encoded_seconds
    assert in_int8.cache_bytes == pytest.approx(200e9 + 41e9, rel=0.02)


def test_objectives_and_merges_are_counted() -> None:
    from tests.sweep.fakes import sweep

    (run, _) = sweep().finetune
    sizes = [ObjectiveSize(corpus="toy", train=np.full(40, 16_000), dev=np.full(4, 16_000))]
    work = WorkCounter(1e9).count_finetuning(run, sizes, BASE)
    assert work.updates == run.updates == 10
    tuned = {unit.split(":")[0]: amount for unit, amount in work.units.items()}
    assert (tuned["tune head"], tuned["tune"]) == (1, 9)
    assert work.front_end_seconds == 44  # 320 draws of 40 utterances: the front end is cached
    assert count_merge("ties", 2, BASE).units == {"job:merge": 1, "merge:ties 2": 1}
    assert count_merge("pretrained", 0, BASE).units == {"job:merge": 1}


def test_a_large_corpus_is_measured_by_its_lengths_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = toy_corpus()
    whole = measure_task(make_spec("sid"), corpus, "toy")
    monkeypatch.setattr("speechft_ray.cost.sizes.MOST_EXAMPLES", 10)
    monkeypatch.setattr("speechft_ray.cost.sizes.build_task_data", None)
    quick = measure_task(make_spec("sid"), corpus, "toy")
    for split, lengths in whole.splits.items():
        assert lengths.tolist() == quick.splits[split].tolist()


def count_tuning(
    head: str, cache_bytes: float = 0.0, objectives: int = 1, **fields: Any
) -> tuple[Work, dict[str, float]]:
    """Counts a run of 10 updates of 8 utterances, validated after 4, 8 and 10 of them, on 300
    utterances of 1 s or 2 s and 100 dev utterances of 1 s."""
    lengths = np.tile([16_000, 32_000], 150)
    size = ObjectiveSize(corpus="toy", train=lengths, dev=np.full(100, 16_000))
    raw = {"head": head, "corpus": {"name": "synthetic"}, "batch_size": 8}
    plain = {"updates": 10, "validate_every_updates": 4, **fields}
    spec = FinetuneSpec.model_validate({"name": "run", "objectives": [raw] * objectives, **plain})
    encoder = replace(BASE, weight_bytes=380)
    work = WorkCounter(cache_bytes).count_finetuning(spec, [size] * objectives, encoder)
    names = {unit.split(":")[0]: amount for unit, amount in work.units.items()}
    return work, {name: names[name] for name in ("layers", "front end")}


def test_the_audio_of_fine_tuning_runs_by_hand() -> None:
    # 3 validations of 100 s, and a minute by the start and by the best weights
    plain, units = count_tuning("frame")
    assert units == {"layers": 300 + 2 * 60, "front end": 80 * 1.5 + 300}
    assert (plain.encoded_seconds, plain.front_end_seconds) == (420, 420)
    assert (plain.store_bytes, plain.cache_bytes) == (380, 0)
    # Statistics of both kinds: one pass over 256 of the 300 utterances, from their audio
    kept, units = count_tuning("frame", gather=("fisher", "gram"), keep_at=(0.2, 0.5))
    assert units["layers"] == pytest.approx(300 + 2 * 3 * 60 + 256 * 1.5)
    assert units["front end"] == pytest.approx(80 * 1.5 + 300 + 256 * 1.5)
    assert kept.store_bytes == 3 * 380
    assert count_tuning("frame", gather=("waves",))[0].units == plain.units
    # A front end that learns: its part in training belongs to the updates
    _, units = count_tuning("frame", freeze_front_end=False)
    assert units == {"layers": 420, "front end": 420}
    # Pseudo-labels of train (450 s) and dev, and crops of a second
    _, units = count_tuning("masked", crop_seconds=1)
    assert units == {"layers": 420 + 450 + 100, "front end": 80 * 1 + 300}
    # Two objectives share the minute, but not their dev sets
    _, units = count_tuning("frame", objectives=2)
    assert units["layers"] == 2 * (300 + 2 * 30)


def test_the_front_end_of_fine_tuning_is_cached_where_nothing_is_cropped() -> None:
    # 320 draws of 300 utterances, 550 s in all: 50 frames a second less one each, of 512 values
    frames_of_all = 150 * 49 + 150 * 99 + 100 * 49
    size_bytes = frames_of_all * 512 * 4
    crop: dict[str, Any] = {"updates": 40, "validate_every_updates": 40, "crop_seconds": 1}
    uncropped, units = count_tuning("frame", size_bytes, **crop)  # the head takes whole utterances
    assert units["front end"] == 550
    assert uncropped.cache_bytes == size_bytes
    assert count_tuning("frame", size_bytes - 1, **crop)[1]["front end"] == 320 * 1.5 + 100
    assert count_tuning("pooled", size_bytes, **crop)[1]["front end"] == 320 * 1 + 100


def make_fold(train: int, dev: int, test: int, **fields: Any) -> TaskSize:
    """Utterances of a second."""
    counts = {"train": train, "dev": dev, "test": test}
    splits = {split: np.full(count, 16_000) for split, count in counts.items()}
    return TaskSize(corpus="toy", splits=splits, **fields)


def test_folds_share_their_recordings_and_donors_of_a_prediction_are_all_encoded() -> None:
    folds = [make_fold(60, 20, 20), make_fold(50, 20, 30)]
    spec = make_spec("er", seeds=2, learning_rate=(0.1, 0.01), validate_every_updates=5)
    shared = EvaluationSize(folds=folds, recordings=np.full(100, 16_000))
    work = WorkCounter(0).count_evaluation(spec, shared, TOY, "e")
    assert work.encoded_seconds == 100
    # 4 probes, each 3 validations and the test of both folds
    amounts = {unit.split(":")[0]: amount for unit, amount in work.units.items()}
    assert amounts["probe"] == work.updates == 2 * 4 * 12
    assert amounts["score"] == 4 * (3 * 20 + 20) + 4 * (3 * 20 + 30)
    apart = WorkCounter(0).count_evaluation(spec, EvaluationSize(folds=folds), TOY, "e")
    assert apart.encoded_seconds == 200
    predicted = WorkCounter(0).count_evaluation(spec, shared, TOY, "e", predicted_from=("a", "b"))
    assert predicted.encoded_seconds == 200
    assert predicted.updates == work.updates


def test_a_task_without_a_probe_compares_each_query_with_each_document() -> None:
    size = EvaluationSize(folds=[make_fold(10, 4, 6, trains=False)])
    for dev_only, pairs in ((True, 4 * 10), (False, 10 * 10)):
        counter = WorkCounter(1e9)
        work = counter.count_evaluation(make_spec("qbe"), size, TOY, "e", dev_only=dev_only)
        (amount,) = (work.units[unit] for unit in work.units if unit.startswith("match:"))
        assert (amount, work.updates) == (pairs, 0)


def test_recordings_that_folds_share_are_listed_once() -> None:
    corpus = toy_corpus({"train": 3, "dev": 2, "test": 1})
    one = replace(corpus, audio_ids={item.key: item.key for item in corpus.utterances})
    first, *others = corpus.utterances
    other = replace(one, utterances=[replace(first, split="test"), *others[1:]])
    expected = [item.samples for item in corpus.utterances if item.split != "test"]
    lengths = join_recordings([one, other], ("train", "dev"))
    assert lengths is not None and lengths.tolist() == expected
    assert join_recordings([one, corpus], ("train", "dev")) is None
