"""Whole evaluations on tones: probes learn what the audio contains and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from speechft_ray.core.counts import UtteranceCounts
from speechft_ray.core.curves import POINT
from speechft_ray.core.errors import UserError
from speechft_ray.core.records import read_scores
from speechft_ray.core.specs import CorpusSpec, EvalSpec
from speechft_ray.speech.corpora.base import Corpus
from speechft_ray.speech.features.cache import FeatureCache
from speechft_ray.superb import facts as facts_module
from speechft_ray.superb.evaluate import REPORTS, SharedCaches, evaluate
from speechft_ray.superb.probe import TrainedProbe
from speechft_ray.superb.tasks.base import TASKS
from tests.superb.toy_models import COUNTS, STATE_COUNT, ToyEncoder, toy_corpus

CPU = torch.device("cpu")
NO_COST = {"seconds": None, "encoded_seconds": None}
"""Facts that differ from one evaluation to the next."""
SMALL: dict[str, Any] = {"projection": 32, "lstm_layers": 1, "lstm_hidden": 32, "specaug": False}


def facts_of(
    corpus: Any = None, encoder: Any = None, report: Any = None, **fields: Any
) -> dict[str, Any]:
    """Evaluates on tones and returns the facts."""
    spec = EvalSpec(corpus=CorpusSpec(), **fields)
    return evaluate(
        spec, encoder or ToyEncoder(), corpus or toy_corpus(), CPU, report or (lambda counts: None)
    )


def on_test(facts: dict[str, Any]) -> dict[str, tuple[float, ...]]:
    return {score.metric: score.values for score in read_scores(facts) if score.split == "test"}


@pytest.mark.parametrize("task", ["sid", "er", "ks", "ic"])
def test_tones_are_classified(task: str) -> None:
    scores = on_test(facts_of(task=task, updates=60, learning_rate=1e-2, batch_size=16, seeds=2))
    assert all(value >= 95.0 for value in scores[f"{task}.accuracy"])


def test_tone_sequences_are_transcribed() -> None:
    assert max(on_test(facts_of(task="pr", updates=150, batch_size=8, seeds=2))["pr.per"]) < 15.0


def test_slots_and_their_values_are_transcribed() -> None:
    scores = on_test(
        facts_of(task="sf", updates=300, learning_rate=1e-2, batch_size=8, options=SMALL)
    )
    assert scores["sf.slot_type_f1"][0] > 90.0
    assert scores["sf.slot_value_cer"][0] < 60.0


def test_labels_without_cause_stay_at_chance() -> None:
    corpus = toy_corpus(
        {"train": 60, "dev": 40, "test": 200}, speaker=lambda labels, draw: f"s{draw.randrange(4)}"
    )
    values = on_test(facts_of(corpus, task="sid", updates=60, learning_rate=1e-2, seeds=2))[
        "sid.accuracy"
    ]
    four_deviations = 4 * 100 * (0.25 * 0.75 / 200) ** 0.5
    assert all(abs(value - 25.0) < four_deviations for value in values)


def test_facts_are_complete_plain_data() -> None:
    reports: list[dict[str, float]] = []
    facts = facts_of(
        task="pr",
        updates=30,
        seeds=3,
        batch_size=8,
        report=lambda report: reports.append(dict(report)),
    )
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert [(score.metric, score.split, len(score.values)) for score in read_scores(facts)] == [
        ("pr.per", "dev", 3),
        ("pr.per", "test", 3),
    ]
    assert (facts["seeds"], facts["learning_rate"], facts["updates"], facts["utterances"]) == (
        3,
        1e-2,
        30,
        COUNTS,
    )
    assert all(update in range(3, 31, 3) for update in facts["best_update"])
    assert [len(weights) for weights in facts["layer_weights"]] == [STATE_COUNT] * 3
    assert all(sum(weights) == pytest.approx(1.0) for weights in facts["layer_weights"])
    assert facts["layer_weights"][0] != [1 / 3] * 3
    assert facts["seconds"]["features"] > 0 and facts["seconds"]["probe"] > 0
    total = sum(COUNTS.values()) + 3 * 30
    assert reports[-1] == {"done": total, "total": total}
    done = [report["done"] for report in reports if POINT not in report]
    assert done == sorted(set(done))
    assert len(done) <= REPORTS
    # Every point of the curve is reported once.
    points = [report for report in reports if POINT in report]
    assert [[report[POINT], report["probe/loss"]] for report in points] == [
        [update, values["loss"]] for update, values in facts["curve"]
    ]
    dev = {update: values["pr.per"] for update, values in facts["curve"] if "pr.per" in values}
    assert list(dev) == list(range(3, 31, 3))
    assert [report["probe/dev_pr.per"] for report in points if report[POINT] in dev] == list(
        dev.values()
    )


@pytest.mark.parametrize("task", ["pr", "sid"])
def test_the_curve_has_the_best_validation(task: str) -> None:
    """Of a probe that is trained alone and of one in a stack."""
    facts = facts_of(task=task, updates=12, seeds=1, batch_size=8, validate_every_updates=3)
    score, *_ = read_scores(facts)
    (best,), curve = facts["best_update"], dict(facts["curve"])
    assert curve[best][score.metric] == score.values[0]
    assert sorted(curve) == list(range(1, 13))


@pytest.mark.parametrize("task", ["sid", "sf"])
def test_counts_add_up_to_the_scores_of_test_seed_by_seed(task: str) -> None:
    options = SMALL if task == "sf" else {}
    facts = facts_of(
        task=task, updates=3, learning_rate=(1e-4, 1e-2), batch_size=8, seeds=2, options=options
    )
    (counts,) = [UtteranceCounts.model_validate(item) for item in facts["counts"]]
    for metric, values in on_test(facts).items():
        rates = [
            100.0 * sum(amounts) / sum(counts.of[metric]) for amounts in counts.amounts[metric]
        ]
        assert rates == pytest.approx(list(values))


def test_counts_name_the_speaker_of_each_utterance() -> None:
    """Names are unique to the corpus; a mixture, silence or an unknown speaker is told apart."""
    corpus = toy_corpus()
    labels = iter(["ann", "bob", " ann ", "none", "", "ann bob"])
    named = [
        replace(item, labels={**item.labels, "speaker": next(labels, "bob")})
        if item.split == "test"
        else item
        for item in corpus.utterances
    ]

    def speakers_of(corpus: Corpus) -> list[str | None]:
        (counts,) = facts_of(corpus, task="ks", updates=1, batch_size=8)["counts"]
        places = counts["speaker_of"]
        return [counts["speakers"][place] if place >= 0 else None for place in places]

    first = speakers_of(replace(corpus, utterances=named))
    ann, bob, again, silent, unknown, mixture, *rest = first
    assert (again, silent, unknown, set(rest)) == (ann, None, None, {bob})
    assert len({ann, bob, mixture}) == 3 and None not in (ann, bob, mixture)
    other = speakers_of(replace(corpus, utterances=named, name="other"))
    assert other != first and [name is None for name in other] == [name is None for name in first]
    same = [
        replace(corpus, utterances=named, name=name, speaker_namespace="readers")
        for name in ("a", "b")
    ]
    assert speakers_of(same[0]) == speakers_of(same[1]) != first


def test_other_test_utterances_are_other_counts() -> None:
    spec: dict[str, Any] = {"task": "sid", "updates": 2, "batch_size": 8}
    identities = [
        facts_of(toy_corpus({"train": 8, "dev": 4, "test": n}), **spec)["counts"][0]["utterances"]
        for n in (4, 4, 5)
    ]
    assert identities[0] == identities[1] != identities[2]


def test_an_evaluation_is_repeatable_whatever_happened_before() -> None:
    spec: dict[str, Any] = {
        "task": "sf",
        "updates": 6,
        "batch_size": 8,
        "seeds": 2,
        "options": {**SMALL, "lstm_hidden": 4, "specaug": True},
    }
    threads = torch.get_num_threads()
    first = facts_of(**spec)
    torch.manual_seed(99)
    torch.set_num_threads(2)
    second = facts_of(**spec)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    assert {**first, **NO_COST} == {**second, **NO_COST}


def test_a_seed_is_the_same_probe_in_a_longer_list_of_seeds() -> None:
    spec = {"task": "sid", "updates": 10, "batch_size": 8}
    one, three = facts_of(seeds=1, **spec), facts_of(seeds=3, **spec)
    assert three["layer_weights"][0] == one["layer_weights"][0]
    assert len({tuple(weights) for weights in three["layer_weights"]}) == 3


def test_every_utterance_is_encoded_once_and_test_after_all_training() -> None:
    encoder = ToyEncoder()
    facts_of(encoder=encoder, task="pr", updates=4, seeds=3, batch_size=8)
    assert sum(encoder.calls) == sum(COUNTS.values())


def test_the_encoder_is_not_trained() -> None:
    encoder = ToyEncoder()
    before = [parameter.clone() for parameter in encoder.parameters()]
    facts_of(encoder=encoder, task="sid", updates=5, batch_size=8)
    assert all(torch.equal(*pair) for pair in zip(before, encoder.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_what_the_spec_says_goes_before_what_the_task_says() -> None:
    facts = facts_of(
        task="sid", updates=7, validate_every_updates=7, learning_rate=0.5, batch_size=3
    )
    assert (facts["learning_rate"], facts["best_update"]) == (0.5, [7])
    assert facts_of(task="sid", updates=3)["learning_rate"] == 1e-4


@pytest.mark.parametrize("task", ["sid", "pr"])
def test_several_rates_are_trained_and_dev_chooses(task: str) -> None:
    """The chosen rate has the scores that it has alone; every rate and seed is told."""
    spec = {"task": task, "updates": 30, "batch_size": 8, "seeds": 2}
    rates = (1e-6, 1e-2, 1e-1)
    facts = facts_of(learning_rate=rates, **spec)
    assert [(item["learning_rate"], item["seed"]) for item in facts["grid"]] == [
        (r, s) for r in rates for s in (0, 1)
    ]
    metric = TASKS.get(task).metrics[0]
    by_rate = {
        rate: [item["dev"][metric] for item in facts["grid"] if item["learning_rate"] == rate]
        for rate in rates
    }
    best = (max if task == "sid" else min)(rates, key=lambda rate: sum(by_rate[rate]))
    assert facts["learning_rate"] == best != 1e-6
    alone = facts_of(learning_rate=best, **spec)
    assert "grid" not in alone
    assert facts["best_update"] == alone["best_update"]
    assert [score.values for score in read_scores(facts)] == [
        score.values for score in read_scores(alone)
    ]
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts


@pytest.mark.parametrize("task", ["sid", "pr"])
def test_a_rate_that_diverges_is_not_selected_and_alone_fails(task: str) -> None:
    """It used to give the scores of chance without a word."""
    spec = {"task": task, "updates": 12, "batch_size": 8, "seeds": 2}
    facts = facts_of(learning_rate=(1e30, 1e-2), **spec)
    assert facts["learning_rate"] == 1e-2
    assert {item["learning_rate"] for item in facts["grid"]} == {1e30, 1e-2}
    with pytest.raises(UserError) as caught:
        facts_of(learning_rate=1e30, **spec)
    sentence = str(caught.value)
    assert f"the probe of `{task}` with seed 0 diverged at the learning rate 1e+30" in sentence
    assert "Lower `learning_rate`" in sentence


def test_the_grid_of_superb_is_one_word() -> None:
    facts = facts_of(task="sid", updates=2, learning_rate="grid", batch_size=8)
    assert [item["learning_rate"] for item in facts["grid"]] == [1e-1, 1e-2, 1e-3, 1e-4, 1e-5]


def test_a_cache_changes_no_number_and_spares_the_encoder(tmp_path: Path) -> None:
    caches = SharedCaches(cache=FeatureCache(tmp_path, 1 << 24), encoder="toy", front_end=None)
    spec = EvalSpec(task="sid", corpus=CorpusSpec(), updates=10, batch_size=8)
    plain = facts_of(task="sid", updates=10, batch_size=8)
    for calls in (sum(COUNTS.values()), 0):
        encoder = ToyEncoder()
        facts = evaluate(spec, encoder, toy_corpus(), CPU, lambda counts: None, caches=caches)
        assert {**facts, **NO_COST} == {**plain, **NO_COST}
        assert sum(encoder.calls) == calls
        assert facts["encoded_seconds"] == (plain["encoded_seconds"] if calls else 0)
    samples = sum(utterance.samples for utterance in toy_corpus().utterances)
    assert plain["encoded_seconds"] == round(samples / 16_000, 1)


@pytest.mark.parametrize("task", ["sid", "pr"])
def test_dev_alone_is_the_same_dev_and_never_touches_test(task: str) -> None:
    """As in a search: no test utterance is read, and the dev metrics are those of the full
    evaluation."""

    class RecordingCorpus:
        def __init__(self) -> None:
            self.corpus = toy_corpus()
            self.read_keys: set[str] = set()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.corpus, name)

        def read(self, utterance: Any) -> Any:
            self.read_keys.add(utterance.key)
            return self.corpus.read(utterance)

    corpus: Any = RecordingCorpus()
    spec = EvalSpec(task=task, corpus=CorpusSpec(), updates=20, batch_size=8, seeds=2)
    facts: Any = evaluate(spec, ToyEncoder(), corpus, CPU, lambda counts: None, dev_only=True)
    assert not corpus.read_keys & {utterance.key for utterance in corpus.corpus.split("test")}
    assert {score.split for score in read_scores(facts)} == {"dev"}
    (counts,) = facts["counts"]  # of dev: report/optimism.py draws them again
    ((of,),) = [list(counts["of"].values())]
    assert len(of) == len(corpus.corpus.split("dev"))
    assert set(facts["utterances"]) == {"train", "dev"}
    full = facts_of(task=task, updates=20, batch_size=8, seeds=2)
    assert read_scores(facts) == [score for score in read_scores(full) if score.split == "dev"]


@pytest.mark.parametrize(
    ("accuracies", "diverged", "best"),
    [
        ([70, 90, 80], "-d-", 2),  # what diverged is no choice, whatever its score
        ([80, 90, 70], "-d-", 0),
        ([90, 70, 80], "d--", 2),
        ([70, 90, 80], "ddd", 1),  # unless nothing else is left
        ([70, 80, 80], "---", 1),
    ],
)
def test_a_rate_at_which_a_probe_diverged_is_selected_last(
    accuracies: list[float], diverged: str, best: int
) -> None:
    """2 seeds of each rate; one that diverged is enough."""
    metrics = [
        {"sid.accuracy": accuracy + shift} for accuracy in accuracies for shift in (-1.0, 1.0)
    ]
    trained = [
        SimpleNamespace(has_diverged=mark == "d" and seed == 1)
        for mark in diverged
        for seed in (0, 1)
    ]
    outcomes: Any = SimpleNamespace(dev=metrics, trained=trained)
    assert facts_module._select_rate("sid.accuracy", outcomes, 2) == best


@pytest.mark.parametrize(("skipped", "diverged"), [(0, False), (10, False), (11, True)])
def test_a_probe_has_diverged_when_most_updates_changed_nothing(
    skipped: int, diverged: bool
) -> None:
    values: Any = {"probe": None, "best_update": 20, "last_update": 20, "dev": {}}
    trained = TrainedProbe(**values, dev_predictions=[], skipped=skipped)
    assert trained.has_diverged == diverged
