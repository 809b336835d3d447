"""A search where metrics cannot be scored: the others select, and without any it says so."""

from __future__ import annotations

from typing import Any

import pytest

from speechft_ray.core.errors import UserError
from speechft_ray.core.records import Job
from speechft_ray.report.search_summary import make_trial_row
from tests.search.search_fakes import (
    MemoryStore,
    cluster,
    evaluator_of,
    job_task,
    perform,
    search_plan,
    smooth,
)


def perfect_baseline(*tasks: str) -> Any:
    """Returns scores where FBank is perfect on dev in these tasks."""

    def facts(job: Job) -> dict[str, Any]:
        values = smooth(job)
        if job.stage == "evaluate" and job.payload["encoder"] is None and job_task(job) in tasks:
            best = 0.0 if job_task(job) == "pr" else 100.0
            for score in values["scores"]:
                score["values"] = [best if score["split"] == "dev" else score["values"][0]]
        return values

    return facts


@pytest.mark.parametrize("rule", ["none", "bound", "median"])
@pytest.mark.parametrize("perfect", ["pr", "sid"])
def test_the_score_of_a_search_is_made_of_the_other_metrics(rule: str, perfect: str) -> None:
    plan, store = search_plan(stop_early=rule), MemoryStore()
    trials = perform(plan, cluster(store, facts=perfect_baseline(perfect)))
    evaluator = evaluator_of(plan, store)
    name = {"pr": "sid.accuracy", "sid": "pr.per"}[perfect]
    ((scored, (zero, one)),) = evaluator.references.items()
    assert scored == name and len(evaluator.unscored) == 1
    ended = [trial for trial in trials if trial.state == "complete"]
    assert ended
    for trial in ended:
        expected = 1000 * (trial.metrics[name] - zero) / (one - zero)
        assert trial.result is not None and trial.result.values[0] == pytest.approx(expected)
    row = make_trial_row(plan, ended[0], evaluator)
    assert row.unscored == tuple(evaluator.unscored) and "score" in row.dev


def test_a_search_by_a_score_without_metrics_says_so() -> None:
    with pytest.raises(UserError, match=r"by the score, but there is none.*SID ACC.*objectives"):
        perform(search_plan(), cluster(MemoryStore(), facts=perfect_baseline("pr", "sid")))


def test_a_search_by_a_metric_goes_on_without_a_score() -> None:
    plan, store = search_plan(objectives=["pr.per"]), MemoryStore()
    trials = perform(plan, cluster(store, facts=perfect_baseline("pr", "sid")))
    assert all(trial.state == "complete" for trial in trials)
    assert "score" not in make_trial_row(plan, trials[0], evaluator_of(plan, store)).dev
