"""Several folds of a corpus as one evaluation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from rich.console import Console

from speechft_ray.commands.evaluate import print_evaluation
from speechft_ray.commands.json_output import describe_evaluation
from speechft_ray.core.fingerprint import fingerprint
from speechft_ray.core.records import Score, read_scores
from speechft_ray.core.specs import CorpusSpec, EvalSpec
from speechft_ray.speech.corpora.base import Corpus, CorpusFiles
from speechft_ray.speech.encoders.base import FAMILIES
from speechft_ray.speech.features.cache import FeatureCache
from speechft_ray.superb.evaluate import SharedCaches, WeightedEncoder, evaluate
from speechft_ray.superb.folds import average_scores, evaluate_folds
from speechft_ray.superb.interpolation import compute_weights
from speechft_ray.sweep.inputs import Inputs
from speechft_ray.sweep.plan import make_plan
from tests.speech.toy_models import toy_encoder
from tests.superb.test_feature_store import no_source
from tests.superb.test_interpolation import move
from tests.superb.toy_models import ToyEncoder, toy_corpus
from tests.sweep.fakes import sweep

FOLDS: dict[str, Any] = {"fold": [1, 2, 3]}
CPU = torch.device("cpu")
NO_COST = {"seconds": None, "encoded_seconds": None}


def spec(**fields: Any) -> EvalSpec:
    return EvalSpec(
        **{
            "task": "er",
            "corpus": CorpusSpec(),
            "updates": 5,
            "batch_size": 8,
            "seeds": 2,
            **fields,
        }
    )


def test_each_fold_is_evaluated_and_the_mean_is_the_result() -> None:
    corpora = [toy_corpus({"train": 24, "dev": 8, "test": 12}, seed=seed) for seed in range(3)]
    reports: list[dict[str, float]] = []
    facts: Any = evaluate_folds(
        spec(folds=FOLDS), ToyEncoder(), corpora, CPU, lambda report: reports.append(dict(report))
    )
    alone = [
        read_scores(evaluate(spec(), ToyEncoder(), corpus, CPU, lambda _: None))
        for corpus in corpora
    ]
    for mean, *folds in zip(read_scores(facts), *alone, strict=True):
        assert mean.values == tuple(
            pytest.approx(sum(fold.values[seed] for fold in folds) / 3) for seed in range(2)
        )
    assert len(facts["folds"]) == 3 and facts["seeds"] == 2
    assert len(facts["counts"]) == 3 and not any("counts" in fold for fold in facts["folds"])
    assert reports[-1]["done"] == reports[-1]["total"] == 3 * (24 + 8 + 12 + 2 * 5)
    done = [report["done"] for report in reports]
    assert done == sorted(done)


def test_one_corpus_is_a_plain_evaluation() -> None:
    corpus = toy_corpus({"train": 12, "dev": 4, "test": 4})
    plain = evaluate(spec(), ToyEncoder(), corpus, CPU, lambda _: None)
    single = evaluate_folds(spec(), ToyEncoder(), [corpus], CPU, lambda _: None)
    assert {**single, **NO_COST} == {**plain, **NO_COST}


def test_values_are_averaged_seed_by_seed() -> None:
    folds = [
        [Score(metric="er.accuracy", split="test", values=values)]
        for values in ((10.0, 20.0), (30.0, 60.0))
    ]
    assert average_scores(folds)[0].values == (20.0, 40.0)


def test_folds_are_options_of_the_corpus() -> None:
    folds_spec = spec(corpus=CorpusSpec(name="iemocap", options={"other": 1}), folds=FOLDS)
    assert [corpus.options for corpus in folds_spec.corpora()] == [
        {"other": 1, "fold": fold} for fold in (1, 2, 3)
    ]
    assert spec().corpora() == (CorpusSpec(),)
    assert EvalSpec.model_validate(folds_spec.model_dump(mode="json")) == folds_spec
    for wrong in ({"fold": [1]}, {"fold": [1, 2], "other": [1, 2]}):
        with pytest.raises(ValidationError):
            spec(folds=wrong)


def test_folds_are_part_of_the_identity_only_where_there_are_some() -> None:
    assert "folds" not in spec().model_dump(mode="json")
    assert fingerprint(spec()) == fingerprint({**spec().model_dump(), "seeds": 2})
    assert fingerprint(spec()) != fingerprint(spec(folds=FOLDS))


def test_a_plan_has_every_fold() -> None:
    folds: list[Any] = []

    def corpus(item: CorpusSpec) -> tuple[str, bool]:
        folds.append(item.options.get("fold"))
        return f"content of fold {item.options.get('fold')}", True

    plan = make_plan(
        sweep(evaluate=[spec(folds=FOLDS).model_dump(mode="json")]),
        Inputs(encoder="e", corpus=corpus),
    )
    jobs = plan.of_stage("evaluate")
    assert {1, 2, 3} <= set(folds) and len(jobs) == len(plan.rows) + 1  # and the baseline
    assert all(
        len([need for need in job.needs if plan.jobs[need].stage == "corpus"]) == 3 for job in jobs
    )


@pytest.mark.parametrize("cached", [False, True])
def test_a_recording_of_several_folds_is_encoded_once(cached: bool, tmp_path: Path) -> None:
    """Three ways to split the same recordings; the numbers are those of folds that are
    encoded separately."""
    whole = toy_corpus({"train": 36}, seed=1)
    audio_ids = {utterance.key: f"sha of {utterance.key}" for utterance in whole.utterances}
    turns = ("train", "dev", "test")

    def make_fold(number: int, with_ids: bool) -> Corpus:
        split = [
            replace(item, split=turns[(index + number) % 3])
            for index, item in enumerate(whole.utterances)
        ]
        return replace(
            whole,
            fingerprint=f"fold {number}",
            utterances=split,
            audio_ids=audio_ids if with_ids else {},
        )

    def evaluate_split(with_ids: bool, encoder: ToyEncoder) -> dict[str, Any]:
        cache = FeatureCache(tmp_path / str(with_ids), 1 << 24)
        caches = SharedCaches(cache=cache, encoder="toy", front_end=None) if cached else None
        corpora = [make_fold(number, with_ids) for number in range(3)]
        return evaluate_folds(
            spec(folds=FOLDS), encoder, corpora, CPU, lambda _: None, caches=caches
        )

    apart, together, again = ToyEncoder(), ToyEncoder(), ToyEncoder()
    expected, facts = evaluate_split(False, apart), evaluate_split(True, together)
    assert (sum(apart.calls), sum(together.calls)) == (3 * 36, 36)
    assert read_scores(facts) == read_scores(expected)
    evaluate_split(True, again)
    assert sum(again.calls) == (0 if cached else 36)


@pytest.mark.parametrize("crops", [0, 2])
def test_predicted_features_of_folds_and_of_their_crops_are_those_of_the_line(crops: int) -> None:
    """Crops were once encoded by the first encoder of the line alone, whole utterances predicted:
    probes trained on features of one alpha and were scored on those of another."""
    whole = toy_corpus({"train": 30}, seed=1)
    audio_ids = {utterance.key: f"sha of {utterance.key}" for utterance in whole.utterances}
    turns = ("train", "dev", "test")
    moved = [move(point) for point in (0.0, 0.5, 1.0)]
    weights = compute_weights((0.0, 0.5, 1.0), 0.8)
    line = [WeightedEncoder(*pair, None) for pair in zip(weights, moved, strict=True)]
    options = {"crops": crops, "crop_seconds": 0.3} if crops else {}
    results = []
    for with_ids in (False, True):
        corpora = [
            replace(
                whole,
                fingerprint=f"fold {number}",
                utterances=[
                    replace(item, split=turns[(index + number) % 3])
                    for index, item in enumerate(whole.utterances)
                ],
                audio_ids=audio_ids if with_ids else {},
            )
            for number in range(3)
        ]
        first = move(0.0)
        facts = evaluate_folds(
            spec(folds=FOLDS, options=options, learning_rate=1e-2, updates=30),
            first,
            corpora,
            CPU,
            lambda _: None,
            dev_only=True,
            predicted_from=line,
        )
        assert not first.calls
        results.append(read_scores(facts))
    assert results[0] == results[1]


def test_folds_of_changed_waves_have_features_of_their_own(tmp_path: Path) -> None:
    """The same files read with a gain once took the features of those without, and back. Folds
    that differ in their gain share nothing."""
    whole = toy_corpus({"train": 30}, seed=1)
    audio_ids = {utterance.key: f"sha of {utterance.key}" for utterance in whole.utterances}
    turns = ("train", "dev", "test")

    def make_fold(number: int, transform: str) -> Corpus:
        gain = 0.001 if transform else 1.0
        return replace(
            whole,
            fingerprint=f"{transform} fold {number}",
            utterances=[
                replace(item, split=turns[(index + number) % 3])
                for index, item in enumerate(whole.utterances)
            ],
            audio_ids=audio_ids,
            read=lambda utterance: whole.read(utterance) * gain,
            files=CorpusFiles(root=tmp_path, source_of=no_source, transform=transform),
        )

    def score(name: str, *transforms: str) -> tuple[list[Score], int]:
        encoder = ToyEncoder()
        caches = SharedCaches(
            cache=FeatureCache(tmp_path / name, 1 << 24), encoder="toy", front_end=None
        )
        facts = evaluate_folds(
            spec(folds=FOLDS, learning_rate=1e-2, updates=20),
            encoder,
            [make_fold(number, transform) for number, transform in enumerate(transforms)],
            CPU,
            lambda _: None,
            caches=caches,
        )
        return read_scores(facts), sum(encoder.calls)

    alone = score("own", "gain", "gain", "gain")
    plain = score("shared", "", "", "")
    assert alone[0] != plain[0] and plain[1] == 30
    assert score("shared", "gain", "gain", "gain") == alone
    assert score("shared", "", "", "") == (plain[0], 0)
    mixed = score("mixed", "", "gain", "")
    assert mixed[1] == 2 * 30


def test_what_happened_in_the_folds_is_told_of_the_whole() -> None:
    """A rate that every fold selects for itself, recordings that were left out, a full disk."""
    corpora = [
        replace(toy_corpus({"train": 24, "dev": 8, "test": 12}, seed=seed), skipped=skipped)
        for seed, skipped in enumerate(({"train": 1, "dev": 0}, {"train": 0, "dev": 2}, {}))
    ]
    facts: Any = evaluate_folds(
        spec(folds=FOLDS, learning_rate=[1e-4, 3e-3, 1e-2], patience=1, updates=10, seeds=1),
        ToyEncoder(),
        corpora,
        CPU,
        lambda _: None,
    )
    rates, ends = (
        [fold[name] for fold in facts["folds"]] for name in ("learning_rate", "last_update")
    )
    assert len(set(rates)) > 1
    assert (facts["learning_rate"], facts["last_update"]) == (rates, ends)
    assert facts["skipped"] == {"dev": 2, "train": 1} and "notes" not in facts
    assert describe_evaluation(facts)["learning_rate"] == rates
    console = Console(record=True, width=200)
    notes = ["the disk was full"]
    print_evaluation({**facts, "spec": {"patience": 1}, "notes": notes}, console)
    lines = console.export_text().splitlines()
    by_fold = ", ".join(f"{rate:g}" for rate in rates)
    assert f"learning rates by fold {by_fold}, 10 updates, 1 probe seed" in lines
    assert f"patience 1: training ended at update {'; '.join(str(*end) for end in ends)}" in lines
    assert "left out, since they cannot be read: 2 of dev, 1 of train" in lines


def test_a_full_disk_of_the_folds_is_noted_once(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, 1 << 24)
    cache.is_disk_full = True
    facts: Any = evaluate_folds(
        spec(folds=FOLDS),
        ToyEncoder(),
        [toy_corpus({"train": 24, "dev": 8, "test": 12}, seed=seed) for seed in range(3)],
        CPU,
        lambda _: None,
        caches=SharedCaches(cache=cache, encoder="toy", front_end=None),
    )
    (note,) = facts["notes"]
    assert "the disk of the feature cache was full" in note
    assert isinstance(facts["learning_rate"], float)


def test_folds_store_the_front_end_once(tmp_path: Path) -> None:
    """Each fold reads means that are there already. It once made room for front ends that it did
    not need, and published them without a row."""
    weights, family = toy_encoder("hubert"), FAMILIES.get("hubert")
    corpus = toy_corpus({"train": 12, "dev": 4, "test": 4})
    corpora = [
        replace(corpus, fingerprint=name, audio_ids={item.key: item.key for item in utterances})
        for name, utterances in (("one", corpus.utterances), ("two", corpus.utterances))
    ]
    caches = SharedCaches(
        cache=FeatureCache(tmp_path, 1 << 24),
        encoder="toy",
        front_end=(family.front_end_prefixes[0], family.describe(weights.config)),
    )
    evaluate_folds(
        spec(folds={"fold": [1, 2]}),
        family.build(weights),
        corpora,
        CPU,
        lambda _: None,
        caches=caches,
    )
    entries = [json.loads(path.read_text()) for path in tmp_path.rglob("manifest.json")]
    assert sum(entry["dtype"] == "float32" for entry in entries) == len(entries) > 0
    front_ends = [entry for entry in entries if sum(entry["counts"]) > len(entry["counts"])]
    assert sum(len(entry["counts"]) for entry in front_ends) == len(corpus.utterances)


def test_dev_alone_encodes_no_recording_that_is_only_in_test() -> None:
    corpus = toy_corpus({"train": 12, "dev": 4, "test": 4})
    corpora = [replace(corpus, audio_ids={item.key: item.key for item in corpus.utterances})] * 2
    encoder = ToyEncoder()
    evaluate_folds(
        spec(folds={"fold": [1, 2]}), encoder, corpora, CPU, lambda _: None, dev_only=True
    )
    assert sum(encoder.calls) == 16
