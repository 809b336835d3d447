"""What a report says of the rungs of a search: cost, correlation, and where each trial ended."""

from __future__ import annotations

import csv
import io
from random import Random
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import spearmanr

from benchmarks.search_idle import MemoryStore
from speechft_ray.commands.search_jobs import list_search_jobs
from speechft_ray.commands.status import print_search_plan, share_of_updates
from speechft_ray.report.rank_correlation import correlate_ranks
from speechft_ray.report.rungs import describe_rungs, summarize_rungs, tabulate_rungs
from speechft_ray.report.search_charts import chart_history
from speechft_ray.report.search_section import make_search_section
from speechft_ray.report.search_summary import (
    SearchResults,
    count_saved_evaluations,
    make_trial_row,
    search_sentences,
    trials_csv,
)
from speechft_ray.report.templates import render_template
from speechft_ray.search.plan import SearchPlan
from speechft_ray.search.rungs import expect_trials
from tests.search.search_fakes import cluster, evaluator_of, perform
from tests.search.test_rungs import rung_plan, screen_plan


@pytest.fixture(scope="module")
def results() -> SearchResults:
    """Of a search whose evaluations take 2 seconds each; its tasks have 5 updates, the rungs 1, 3
    and 5."""
    return collect(rung_plan())


def collect(plan: SearchPlan) -> SearchResults:
    executor = cluster(MemoryStore())
    trials = perform(plan, executor)
    evaluator = evaluator_of(plan, executor.store)
    return SearchResults(
        plan=plan,
        evaluator=evaluator,
        trials=trials,
        chosen=evaluator.select_best(trials),
        saved=count_saved_evaluations(plan, trials, executor.store),
        rungs=summarize_rungs(plan, trials, executor.store),
    )


def test_the_cost_is_counted_by_rung(results: SearchResults) -> None:
    assert results.rungs is not None
    reached = [sum(trial.rung >= rung for trial in results.trials) for rung in range(3)]
    assert [line.trials for line in results.rungs.lines] == reached
    # Two tasks: 2, then 4 more, then 4 more updates; two evaluations of 2 seconds each.
    updates = [2 * reached[0], 4 * reached[1], 4 * reached[2]]
    assert [line.updates for line in results.rungs.lines] == updates
    assert [line.seconds for line in results.rungs.lines] == [4.0 * count for count in reached]
    assert results.rungs.update_share == sum(updates) / (24 * 10)
    assert results.rungs.second_share == sum(4.0 * count for count in reached) / (24 * 12.0)
    for trial, cost in zip(results.trials, results.rungs.costs, strict=True):
        assert cost == ((2, 6, 10)[trial.rung], 4.0 * (trial.rung + 1))


def test_every_trial_has_its_rung_in_the_table(results: SearchResults) -> None:
    lines = list(csv.DictReader(trials_csv(results).splitlines()))
    for line, trial in zip(lines, results.trials, strict=True):
        assert float(line["rung"]) == (0.2, 0.6, 1.0)[trial.rung]
        assert float(line["rung.0.2.score"]) == trial.rung_values[0]
        assert bool(line["rung.0.6.score"]) == (trial.rung > 0)
        assert bool(line["objective.score"]) == (trial.state == "complete")
        assert int(line["updates"]) == (2, 6, 10)[trial.rung]


def test_page_and_sentences_tell_it(results: SearchResults) -> None:
    page = render_template("search.html", search=make_search_section(results, {}))
    assert '<table id="rungs">' in page
    text = " ".join(search_sentences(results))
    assert f"{sum(t.state == 'pruned' for t in results.trials)} stopped at a rung" in text
    assert "Trials by the rung that they were evaluated up to: 24 to 0.2" in text
    assert results.rungs is not None
    assert len(tabulate_rungs(results.rungs)) == 4
    sentences = " ".join(describe_rungs(results.rungs))
    assert "Rank correlation: rung 0.2 with the next rung" in sentences


def test_trackers_get_rungs_as_steps(results: SearchResults) -> None:
    assert results.evaluator is not None
    for trial in results.trials:
        row = make_trial_row(results.plan, trial, results.evaluator)
        assert row.params["rung"] == (0.2, 0.6, 1.0)[trial.rung]
        assert row.extra["rung/updates"] == (2, 6, 10)[trial.rung]
        steps = list(zip((2, 6), trial.rung_values, strict=False))
        assert row.curve == [(step, {"rung/score": value}) for step, value in steps]
        assert ("score" in row.dev) == (trial.state == "complete")


def test_a_screen_is_a_rung_of_its_own_without_updates() -> None:
    """Its value is told from the score everywhere, and its rank correlation is printed."""
    results = collect(screen_plan(trials=40))
    assert results.rungs is not None and results.evaluator is not None
    first, second = results.rungs.lines[:2]
    assert (first.name, first.trials, first.updates) == ("screen", 40, 0)
    assert first.seconds == 40 * 1.0 and second.updates == 2 * second.trials
    assert results.rungs.costs[0].updates == (0, 2, 6, 10)[results.trials[0].rung]
    both = [trial.rung_values[:2] for trial in results.trials if len(trial.rung_values) > 1]
    assert first.next_rung is not None
    assert first.next_rung.value == pytest.approx(spearmanr(*zip(*both, strict=True)).statistic)
    text = " ".join(search_sentences(results))
    assert "evaluated up to: 40 to the screen, " in text
    assert "Rank correlation: screen with the next rung " in text
    for line, trial in zip(csv.DictReader(trials_csv(results).splitlines()), results.trials,
                           strict=True):  # fmt: skip
        assert float(line["screen.ridge"]) == trial.rung_values[0]
        assert bool(line["rung.0.2.score"]) == (trial.rung > 0)
        row = make_trial_row(results.plan, trial, results.evaluator)
        names = ("screen/ridge", "rung/score", "rung/score")
        steps = zip((0, 2, 6), names, trial.rung_values, strict=False)
        assert row.curve == [(step, {name: value}) for step, name, value in steps]
    group = chart_history(results)
    assert group is not None
    (stopped,) = [trace for trace in group.charts[0].traces if trace.label.startswith("stopped")]
    at_rungs = [t for t in results.trials if t.state == "pruned" and len(t.rung_values) > 1]
    assert stopped.points == [(float(t.number), t.rung_values[-1]) for t in at_rungs]


def test_a_plan_counts_screens_without_updates() -> None:
    plan: Any = screen_plan()
    expected = expect_trials(plan.search)
    assert expected[0] == 24 > expected[1] > expected[2]
    jobs = [
        job
        for job in list_search_jobs(plan, MemoryStore(), 0)  # type: ignore[arg-type]
        if job.payload.get("splits") == ["dev"]
    ]
    screens = [job for job in jobs if job.payload.get("kind") == "screen"]
    assert len(screens) == 24 and len(jobs) == 24 + 2 * sum(expected[1:])
    updates = sum(job.payload["spec"]["updates"] for job in jobs if job not in screens)
    assert updates / (24 * 10) == pytest.approx(share_of_updates(plan, expected))
    console = Console(record=True, width=400, file=io.StringIO())
    print_search_plan(plan, MemoryStore(), console)  # type: ignore[arg-type]
    assert (
        f"rungs: all 24 proposals screened without training (ridge on sid), about {expected[1]} to "
        f"0.2, about {expected[2]} to 0.6, about {expected[3]} to 1 (one of 2 goes on from the "
        "screen, then one of 3 goes on; "
    ) in console.export_text()


def test_a_plan_counts_what_is_expected_and_the_bill_agrees() -> None:
    plan: Any = rung_plan()
    expected = expect_trials(plan.search)
    jobs = [
        job
        for job in list_search_jobs(plan, MemoryStore(), 0)  # type: ignore[arg-type]
        if job.payload.get("splits") == ["dev"]
    ]
    assert len(jobs) == 2 * sum(expected)
    updates = sum(job.payload["spec"]["updates"] for job in jobs)
    assert updates / (24 * 10) == pytest.approx(share_of_updates(plan, expected))


def test_rank_correlation_against_scipy_and_its_interval_covers() -> None:
    source = np.random.default_rng(0)
    one, other = source.integers(0, 9, 40).tolist(), source.normal(size=40).tolist()
    correlation = correlate_ranks(one, other)
    assert correlation is not None
    assert correlation.value == pytest.approx(spearmanr(one, other).statistic)
    # Gaussian pairs with correlation 0.7 have Spearman's 6 / pi * asin(0.35) in the limit.
    truth, covered = 6 / np.pi * np.arcsin(0.35), 0
    for _ in range(200):
        pair = source.multivariate_normal([0, 0], [[1, 0.7], [0.7, 1]], size=30)
        interval = correlate_ranks(pair[:, 0].tolist(), pair[:, 1].tolist())
        assert interval is not None
        covered += interval.low <= truth <= interval.high
    assert 0.91 <= covered / 200 <= 0.985


def test_too_few_pairs_have_no_correlation() -> None:
    assert correlate_ranks([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]) is None
    assert correlate_ranks([1.0] * 9, [Random(0).random() for _ in range(9)]) is None
    assert str(correlate_ranks([1, 2, 3, 4, 5], [1, 2, 3, 4, 5])) == "1.00 (1.00 to 1.00, 5 pairs)"
