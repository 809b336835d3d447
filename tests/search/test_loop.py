"""The loop of a search with a simulated cluster: what it evaluates, when it stops, what it
chooses."""

from __future__ import annotations

import threading
from random import Random
from typing import Any

import pytest

from benchmarks.search_idle import MemoryStore, Silent
from speechft_ray.core.errors import Interrupted, UserError
from speechft_ray.core.records import Job
from speechft_ray.report.search_summary import (
    SearchResults,
    count_saved_evaluations,
    make_trial_row,
    search_sentences,
)
from speechft_ray.search.plan import make_selection_plan
from speechft_ray.search.progress import progress_line
from speechft_ray.search.trials import Trial, TrialEvaluator
from tests.search.search_fakes import (
    AXES,
    alpha_of,
    cluster,
    evaluator_of,
    job_task,
    perform,
    search_plan,
    smooth,
    summarize,
)


def dev_jobs(jobs: list[Job]) -> list[Job]:
    return [job for job in jobs if job.payload.get("splits") == ["dev"]]


def test_a_search_finds_the_best_alpha_and_evaluates_it_on_dev_alone() -> None:
    plan, executor = (
        search_plan(trials=40, max_concurrent=6, stop_early="none"),
        cluster(MemoryStore()),
    )
    trials = perform(plan, executor)
    assert [trial.number for trial in trials] == list(range(40))
    assert {trial.state for trial in trials} == {"complete"}
    (best,) = evaluator_of(plan, executor.store).select_best(trials)
    assert best.proposal.merge.alpha == pytest.approx(0.3, abs=0.1)
    full = [job for job in executor.done if job.stage == "evaluate" and "splits" not in job.payload]
    assert {job.label for job in full} == {
        "evaluate pr alpha=0",
        "evaluate sid alpha=0",
        "evaluate pr fbank",
        "evaluate sid fbank",
    }
    assert len(dev_jobs(executor.done)) == 2 * len({trial.key for trial in trials})


def test_what_ends_when_does_not_matter() -> None:
    runs: list[list[Any]] = []
    for workers, seed in ((1, 0), (3, 1), (16, 2)):
        plan = search_plan()
        runs.append(summarize(perform(plan, cluster(MemoryStore(), workers, seed))))
    assert runs[0] == runs[1] == runs[2]
    assert {state for _, _, _, state, *_ in runs[0]} >= {"complete", "pruned"}


class Killed(Exception):
    pass


class KillsAfter(Silent):
    """Ends the driver without any warning after so many results."""

    def __init__(self, count: int) -> None:
        self.count = count

    def on_trial_end(self, trial: Trial, evaluator: TrialEvaluator) -> None:
        self.count -= 1
        if self.count == 0:
            raise Killed


def test_killed_three_times_it_is_the_same_search_and_nothing_is_evaluated_twice() -> None:
    undisturbed = summarize(perform(search_plan(), cluster(MemoryStore())))
    store, done = MemoryStore(), []
    for count in (2, 5, 9):
        executor = cluster(store, workers=4, seed=count)
        with pytest.raises(Killed):
            perform(search_plan(), executor, KillsAfter(count))
        done += executor.done
    last = cluster(store, workers=2, seed=7)
    assert summarize(perform(search_plan(), last)) == undisturbed
    done += last.done
    assert len({job.fingerprint for job in done}) == len(done)


def test_there_is_no_generation_barrier() -> None:
    """While one evaluation takes for ever, others are proposed until the window is full."""
    started: list[int] = []

    class Notes(Silent):
        def on_trial_start(self, trial: Trial) -> None:
            started.append(trial.number)

        def on_trial_end(self, trial: Trial, evaluator: TrialEvaluator) -> None:
            if trial.number == 3:
                assert max(started) == 3 + 5 - 1  # waits for the straggler alone

    executor = cluster(MemoryStore(), workers=2)
    executor.seconds = lambda job: 1e6 if job.label.endswith("trial 3") else 1.0
    perform(search_plan(max_concurrent=5, stop_early="none"), executor, Notes())
    assert max(started) == 15


def test_the_next_proposal_starts_when_an_evaluation_ends() -> None:
    """With a wide window all workers are busy until the budget is spent."""
    plan = search_plan(trials=60, max_concurrent=30, stop_early="none", sampler="random")
    executor = cluster(MemoryStore(), workers=4)
    executor.seconds = lambda job: (
        1 + 4 * Random(job.fingerprint).random() if job.stage == "evaluate" else 0.0
    )
    perform(plan, executor)
    assert 1 - executor.busy_seconds / (4 * executor.now) < 0.06


def test_idle_workers_evaluate_ahead_and_it_changes_nothing() -> None:
    """The last trials have more workers than trials: their later tasks start at once, in another
    order and to no other end."""
    alone, crowd = cluster(MemoryStore(), workers=1), cluster(MemoryStore(), workers=40)
    assert summarize(perform(search_plan(trials=24), alone)) == summarize(
        perform(search_plan(trials=24), crowd)
    )
    assert len(dev_jobs(alone.done)) < len(dev_jobs(crowd.done)) <= 48


def test_one_failing_merge_does_not_stop_a_search() -> None:
    def facts(job: Job) -> dict[str, Any] | None:
        return None if job.label.endswith(("trial 2", "trial 9")) else smooth(job)

    plan, executor = search_plan(stop_early="none"), cluster(MemoryStore(), facts=facts)
    trials = perform(plan, executor)
    assert [trial.number for trial in trials if trial.state == "failed"] == [2, 9]
    assert trials[2].error == "made to fail"
    assert sum(trial.state == "complete" for trial in trials) == 14
    assert "2 failed" in progress_line(trials, 16, evaluator_of(plan, executor.store))


def test_a_donor_that_fails_fails_its_trials_alone() -> None:
    def facts(job: Job) -> dict[str, Any] | None:
        return None if job.label == "finetune narrow seed=1" else smooth(job)

    trials = perform(search_plan(stop_early="none"), cluster(MemoryStore(), facts=facts))
    for trial in trials:
        seed = trial.proposal.donors[0][0].spec.seed
        assert trial.state == ("failed" if seed == 1 else "complete")
        assert (trial.error == "not started, because `finetune narrow seed=1` failed") == (
            seed == 1
        )


def test_a_control_that_fails_ends_the_search_with_a_sentence() -> None:
    def facts(job: Job) -> dict[str, Any] | None:
        return None if job.label == "evaluate sid fbank" else smooth(job)

    with pytest.raises(
        UserError,
        match=r"`evaluate sid fbank` failed, and without it no proposal can be evaluated: "
        "made to fail",
    ):
        perform(search_plan(), cluster(MemoryStore(), facts=facts))


def test_values_that_are_no_numbers_are_failures() -> None:
    def facts(job: Job) -> dict[str, Any]:
        job_facts = smooth(job)
        if job.label == "evaluate sid on dev trial 4":
            job_facts["scores"][0]["values"] = [float("nan")]
        return job_facts

    trials = perform(search_plan(stop_early="none"), cluster(MemoryStore(), facts=facts))
    assert trials[4].state == "failed" and trials[4].error == "a value is not a finite number"
    assert [trial.state for trial in trials].count("failed") == 1


def test_a_repeated_proposal_costs_nothing() -> None:
    axes = {"alpha": {"choice": [0.25, 0.5]}, "seed": 1, "donors": ["narrow"]}
    plan = search_plan(axes={**axes, "seed": "donors"}, sampler="random", stop_early="none")
    executor = cluster(MemoryStore())
    trials = perform(plan, executor)
    distinct = {trial.key for trial in trials}
    assert len(distinct) == 4
    assert len(dev_jobs(executor.done)) == 2 * 4
    for trial in trials:
        first = next(other for other in trials if other.key == trial.key)
        assert trial.repeats == (None if first is trial else first.number)
        assert trial.metrics == first.metrics
    (best,) = evaluator_of(plan, executor.store).select_best(trials)
    assert best.repeats is None


@pytest.mark.parametrize("rule", ["bound", "median"])
def test_hopeless_trials_are_stopped_and_the_best_never_is(rule: str) -> None:
    plan, executor = (
        search_plan(trials=40, stop_early=rule, sampler="random"),
        cluster(MemoryStore(), workers=1),
    )
    trials = perform(plan, executor)
    everything = search_plan(trials=40, stop_early="none", sampler="random")
    whole = perform(everything, cluster(MemoryStore()))
    assert [trial.key for trial in trials] == [
        trial.key for trial in whole
    ]  # random proposals do not depend on results
    saved, seconds = count_saved_evaluations(plan, trials, executor.store)
    assert saved == sum(trial.state == "pruned" for trial in trials) > 5
    assert len(dev_jobs(executor.done)) == 80 - saved
    assert seconds == pytest.approx(2.0 * saved)
    evaluator = evaluator_of(plan, executor.store)
    (best,), (truth,) = evaluator.select_best(trials), evaluator.select_best(whole)
    assert (best.number, best.result.values if best.result else ()) == (
        truth.number, truth.result.values if truth.result else ()
    )  # fmt: skip
    for trial in trials:
        if trial.state == "pruned":
            assert trial.tasks == 1 and set(trial.metrics) == {"pr.per", "distance"}


def test_the_bound_by_hand() -> None:
    """A stop is right when 1000 x mean(own share, best share seen of the rest) is below the best
    score reported before."""
    plan, executor = search_plan(trials=40, sampler="random"), cluster(MemoryStore(), workers=1)
    trials = perform(plan, executor)

    # Shares of PR and SID by the references of `smooth`.
    def per(value: float) -> float:
        return (value - 60.0) / (0.0 - 60.0)

    def acc(value: float) -> float:
        return (value - 40.0) / (100.0 - 40.0)

    pretrained = evaluator_of(plan, executor.store).pretrained
    for trial in trials:
        reported = trials[: max(0, trial.number + 1 - 5)]
        full = [other for other in reported if other.state == "complete"]
        if not full:
            assert trial.state == "complete"
            continue
        best = max(
            500 * (per(other.metrics["pr.per"]) + acc(other.metrics["sid.accuracy"]))
            for other in full
        )
        rest = max(
            acc(values["sid.accuracy"])
            for values in [pretrained, *(other.metrics for other in full)]
        )
        reach = 500 * (per(trial.metrics["pr.per"]) + rest)
        assert trial.state == ("pruned" if reach < best else "complete")


def test_a_margin_stops_fewer() -> None:
    counts = []
    for margin in (0.0, 50.0, 1e6):
        trials = perform(
            search_plan(trials=40, sampler="random", pruning_margin=margin), cluster(MemoryStore())
        )
        counts.append(sum(trial.state == "pruned" for trial in trials))
    assert counts[0] > counts[1] >= counts[2] == 0


def test_constraints_choose() -> None:
    plan = search_plan(
        stop_early="none",
        trials=30,
        constraints=[{"metric": "sid.accuracy", "no_worse_than": 80.9}],
    )
    executor = cluster(MemoryStore())
    trials = perform(plan, executor)
    evaluator = evaluator_of(plan, executor.store)
    assert any(not trial.feasible for trial in trials)
    for trial in trials:
        assert trial.result is not None
        assert list(trial.result.violations) == [
            pytest.approx(80.9 - trial.metrics["sid.accuracy"])
        ]
    (best,) = evaluator.select_best(trials)
    kept = [trial for trial in trials if trial.metrics["sid.accuracy"] >= 80.9]
    least = min(trials, key=lambda trial: 80.9 - trial.metrics["sid.accuracy"])
    if not kept:
        assert best.number == least.number
    else:
        assert (
            best.number
            == max(kept, key=lambda trial: trial.result.values[0] if trial.result else 0).number
        )


def test_no_worse_than_pretrained_reads_the_control() -> None:
    plan = search_plan(
        stop_early="none", constraints=[{"metric": "dev.pr.per", "no_worse_than": "pretrained"}]
    )
    executor = cluster(MemoryStore())
    trials = perform(plan, executor)
    limit = evaluator_of(plan, executor.store).pretrained["pr.per"]
    for trial in trials:
        assert trial.result is not None
        assert list(trial.result.violations) == [pytest.approx(trial.metrics["pr.per"] - limit)]
        assert trial.feasible == (trial.metrics["pr.per"] <= limit)


def test_two_objectives_give_a_front() -> None:
    plan, executor = (
        search_plan(trials=40, objectives=["score", "distance"]),
        cluster(MemoryStore()),
    )
    trials = perform(plan, executor)
    evaluator = evaluator_of(plan, executor.store)
    front = evaluator.select_best(trials)
    points = [(t.result.values[0], t.result.values[1]) for t in trials if t.result]
    expected = {
        (score, far)
        for score, far in points
        if not any(s >= score and f <= far and (s, f) != (score, far) for s, f in points)
    }
    selected = [tuple(trial.result.values) for trial in front if trial.result]
    assert set(selected) == expected and len(expected) > 2
    assert selected == sorted(selected, reverse=True)  # the best score first
    # Nothing is pruned with several objectives.
    assert all(trial.state == "complete" for trial in trials)


def test_only_the_tasks_of_the_objectives_are_evaluated() -> None:
    plan, executor = search_plan(objectives=["sid.accuracy"]), cluster(MemoryStore())
    perform(plan, executor)
    assert {job_task(job) for job in dev_jobs(executor.done)} == {"sid"}
    assert [item.task for item in search_plan(objectives=["distance"]).tasks] == ["pr"]


def test_donors_that_are_not_proposed_are_not_trained() -> None:
    executor = cluster(MemoryStore())
    perform(search_plan(axes={"alpha": {"uniform": [0, 1]}, "seed": "donors"}, trials=1), executor)
    assert sum(job.stage == "finetune" for job in executor.done) == 1


def test_a_stop_ends_it_and_the_same_command_goes_on() -> None:
    store, stop = MemoryStore(), threading.Event()

    class Stops(Silent):
        def on_trial_end(self, trial: Trial, evaluator: TrialEvaluator) -> None:
            stop.set()

    with pytest.raises(Interrupted):
        perform(search_plan(), cluster(store), Stops(), stop)
    assert summarize(perform(search_plan(), cluster(store))) == summarize(
        perform(search_plan(), cluster(MemoryStore()))
    )


def test_the_plan_of_what_was_chosen() -> None:
    plan, executor = search_plan(stop_early="none"), cluster(MemoryStore())
    trials = perform(plan, executor)
    (best,) = evaluator_of(plan, executor.store).select_best(trials)
    final = make_selection_plan(plan, [(best.number, best.proposal)])
    assert final.fingerprint == plan.fingerprint
    assert final.winner == best.key
    assert [row.params["alpha"] for row in final.rows] == [0.0, 1.0, best.proposal.merge.alpha]
    control = final.jobs[final.rows[1].key]
    assert control.payload["method"] == "linear" and control.payload["params"] == {}
    assert control.payload["donors"] == [key for _, key in best.proposal.donors]
    for row in final.rows:
        evaluations = [final.jobs[key] for key in row.evaluations]
        assert [job_task(job) for job in evaluations] == ["pr", "sid"]
        assert all("splits" not in job.payload for job in evaluations)
    assert not any(job.payload.get("splits") for job in final.jobs.values())


def test_a_trial_as_a_row_has_dev_metrics_alone() -> None:
    plan, executor = search_plan(stop_early="none"), cluster(MemoryStore())
    trials = perform(plan, executor)
    evaluator = evaluator_of(plan, executor.store)
    row = make_trial_row(plan, trials[0], evaluator)
    assert row.test == {} and set(row.dev) == {"pr.per", "sid.accuracy", "score"}
    assert set(row.extra) == {"distance"}
    assert row.dev["score"] == trials[0].result.values[0]  # type: ignore[union-attr]
    assert row.params["trial"] == 0 and row.params["alpha"] == trials[0].proposal.merge.alpha
    assert len({make_trial_row(plan, trial, evaluator).key for trial in trials}) == 16


def test_sentences_say_what_it_cost() -> None:
    plan, executor = search_plan(trials=40, sampler="random"), cluster(MemoryStore())
    trials = perform(plan, executor)
    evaluator = evaluator_of(plan, executor.store)
    chosen = evaluator.select_best(trials)
    text = " ".join(
        search_sentences(
            SearchResults(
                plan=plan, evaluator=evaluator, trials=trials, chosen=chosen, saved=(7, 120)
            )
        )
    )
    assert "Early stops saved 7 of 80 evaluations, about 2.0 minutes of one worker." in text
    assert f"Chosen on dev: trial {chosen[0].number}" in text


def test_alpha_is_what_the_recipe_says() -> None:
    plan, executor = search_plan(axes={**AXES, "alpha": 0.5}), cluster(MemoryStore())
    perform(plan, executor)
    assert {alpha_of(job) for job in dev_jobs(executor.done)} == {0.5}
