"""The optimism of a selection against simulations in which the truth is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from benchmarks.search_idle import SimulatedCluster
from speechft_ray.core.counts import COUNTS_FILE, UtteranceCounts
from speechft_ray.core.store import Store
from speechft_ray.report.intervals import read_evaluation_counts
from speechft_ray.report.optimism import estimate_optimism
from speechft_ray.report.search_optimism import measure_optimism
from speechft_ray.report.search_summary import SearchResults, search_sentences
from tests.search.search_fakes import evaluator_of, perform, search_plan, smooth

CANDIDATES, UTTERANCES, SIMULATIONS = 20, 150, 30


def make_counts(right: np.ndarray, metric: str = "sid.accuracy") -> list[UtteranceCounts]:
    """Counts of one evaluation; ``right`` ``(probes, utterances)``."""
    return [
        UtteranceCounts(
            utterances="dev",
            amounts={metric: tuple(tuple(map(int, probe)) for probe in right)},
            of={metric: (1,) * right.shape[1]},
            speakers=("a", "b"),
            speaker_of=tuple(index % 2 for index in range(right.shape[1])),
        )
    ]


@pytest.mark.parametrize(
    "spread",
    [0.1, *(pytest.param(spread, marks=pytest.mark.slow) for spread in (0.0, 0.4))],
)
def test_the_winner_looks_as_much_better_as_it_does(spread: float) -> None:
    """Candidates with abilities of this spread, utterances that are hard or easy for all."""
    source = np.random.default_rng(1)
    real, estimates = [], []
    for seed in range(SIMULATIONS):
        ability = spread * source.normal(size=CANDIDATES)
        ease = source.normal(size=UTTERANCES)
        noise = source.normal(size=(CANDIDATES, UTTERANCES))
        right = ability[:, None] + ease + noise > 0
        # True accuracy on these utterances' kind; what all share is no optimism of a selection.
        measured, true = 100 * right.mean(1), 100 * norm.cdf(ability / 2**0.5)
        best = int(measured.argmax())
        real.append((measured - true)[best] - (measured - true).mean())
        candidates = [[make_counts(right[index : index + 1])] for index in range(CANDIDATES)]
        optimism = estimate_optimism(candidates, {"sid.accuracy": 1.0}, seed)
        assert optimism is not None and optimism.candidates == CANDIDATES
        estimates.append(optimism.excess)
    error = np.std(real) / SIMULATIONS**0.5
    assert np.mean(estimates) == pytest.approx(np.mean(real), abs=3 * error + 0.1 * np.mean(real))
    assert np.mean(estimates) > 0


def test_two_evaluations_add_up_and_the_weight_is_the_unit() -> None:
    source = np.random.default_rng(2)
    right = source.random((2, 8, 1, 100)) > 0.5
    both = [
        [make_counts(right[0, index]), make_counts(right[1, index], "ks.accuracy")]
        for index in range(8)
    ]
    weights = {"sid.accuracy": 5.0, "ks.accuracy": 5.0}
    whole = estimate_optimism(both, weights)
    one = estimate_optimism([[of[0]] for of in both], {"sid.accuracy": 10.0})
    assert whole is not None and one is not None
    assert whole.excess == pytest.approx(one.excess / 2**0.5, rel=0.25)
    double = estimate_optimism(both, {name: 2 * weight for name, weight in weights.items()})
    assert double is not None and double.excess == pytest.approx(2 * whole.excess)


def test_where_a_metric_has_no_counts_there_is_no_estimate() -> None:
    right = np.random.default_rng(3).random((2, 1, 30)) > 0.5
    candidates = [[make_counts(right[0])], [make_counts(right[1])]]
    assert estimate_optimism(candidates, {"sid.accuracy": 1.0, "asv.eer": -1.0}) is None
    assert estimate_optimism(candidates[:1], {"sid.accuracy": 1.0}) is None
    assert estimate_optimism([[[]], [[]]], {"sid.accuracy": 1.0}) is None


@pytest.mark.parametrize("objective", ["score", "pr.per"])
def test_the_report_of_a_search_says_it_with_test_beside(objective: str, tmp_path: Path) -> None:
    """Of an error rate, the highest negative is selected, and the correction is added."""
    plan = search_plan(trials=6, stop_early="none", objectives=[objective])
    store = Store(tmp_path / "runs")
    trials = perform(plan, SimulatedCluster(store, 2, lambda job: 1.0, smooth))
    evaluator = evaluator_of(plan, store)
    assert measure_optimism(plan, trials, evaluator, store) is None  # units without counts
    source = np.random.default_rng(4)
    for trial in trials:
        for task in plan.tasks:
            metric = {"pr": "pr.per", "sid": "sid.accuracy"}[task.task]
            (counts,) = make_counts(source.random((2, 60)) > 0.5, metric)
            key = plan.evaluation(trial.proposal, trial.number, task)
            text = json.dumps([counts.model_dump(mode="json")])
            (store.folder("evaluate", key) / COUNTS_FILE).write_text(text)
    optimism = measure_optimism(plan, trials, evaluator, store)
    assert optimism is not None
    assert optimism.candidates == len({trial.key for trial in trials})
    if objective == "pr.per":
        (task,) = plan.tasks
        keys = [
            plan.evaluation(trial.proposal, trial.number, task)
            for trial in trials
            if trial.repeats is None
        ]
        sets = [[read_evaluation_counts(store, key, task.name)] for key in keys]
        assert optimism == estimate_optimism(sets, {"pr.per": -1.0})
        assert optimism != estimate_optimism(sets, {"pr.per": 1.0})
    results = SearchResults(
        plan=plan,
        evaluator=evaluator,
        trials=trials,
        chosen=evaluator.select_best(trials),
        optimism=optimism,
        test={objective: 123.456},
    )
    assert results.chosen[0].result is not None
    value, excess = results.chosen[0].result.values[0], optimism.excess
    sentence = search_sentences(results)[-1]
    if objective == "score":
        assert sentence == (
            f"Selection on dev: the best of {optimism.candidates} merges is expected to look "
            f"{excess:.2f} points better than it is (bootstrap over dev utterances); without "
            f"that its dev score is {value - excess:.2f}. On test it has 123.46."
        )
    else:
        assert f" is {value + excess:.2f}" in sentence and excess > 0.01
