"""Rungs of a search with a simulated cluster: who goes on, what it costs, and that neither order
nor kills matter."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.search_idle import MemoryStore
from speechft_ray.core.errors import SpecError, SweepError
from speechft_ray.core.records import Job
from speechft_ray.core.space import parse_space
from speechft_ray.core.specs import SearchSpec
from speechft_ray.search import trials
from speechft_ray.search.plan import SearchPlan, make_search_plan
from speechft_ray.search.rungs import Rungs, count_lookahead, expect_trials, find_pause
from speechft_ray.search.trials import Trial, TrialEvaluator
from speechft_ray.sweep.inputs import Inputs
from tests.search.search_fakes import (
    cluster,
    evaluator_of,
    perform,
    search_plan,
    search_space,
    smooth,
    summarize,
)
from tests.search.test_loop import Killed, KillsAfter, dev_jobs
from tests.sweep.fakes import inputs

RUNGS: dict[str, Any] = {"rungs": [0.2, 0.6, 1], "reduction_factor": 3}
"""Of 5 updates: 1, 3 and 5."""


def rung_plan(**changes: Any) -> SearchPlan:
    return search_plan(**{"trials": 24, "max_concurrent": 7, **RUNGS, **changes})


SCREEN: dict[str, Any] = {"screen": {"by": "ridge"}}
"""One of 2 goes on to the first rung; sid is the only task with one label per utterance."""


def screen_plan(**changes: Any) -> SearchPlan:
    space = search_space(**{"trials": 24, "max_concurrent": 7, **RUNGS, **SCREEN, **changes})
    return make_search_plan(parse_space(space, "test"), label_inputs(), 6)


def label_inputs() -> Inputs:
    return replace(
        inputs(), can_screen=lambda item, by: item.task == ("pr" if by == "abx" else "sid")
    )


def describe(trials: list[Trial]) -> list[Any]:
    return [
        (*item, trial.rung, trial.rung_values)
        for item, trial in zip(summarize(trials), trials, strict=True)
    ]


def decide_by_definition(trials: list[Trial], search: SearchSpec) -> dict[tuple[int, int], bool]:
    """Whether each trial goes on from each rung that it reached, from the definition alone."""
    factors = [search.reduction_factor] * (len(search.rungs) - 1)
    if search.screen is not None:
        factors = [search.screen.reduction_factor, *factors]
    last_rung, ahead = len(factors), (search.concurrency() - 1) // len(factors)
    sign = 1 if search.objectives == ("pr.per",) else -1
    decisions = {}
    for trial in trials:
        if trial.repeats is not None:
            continue
        for rung in range(min(len(trial.rung_values), last_rung)):
            compared = [
                (sign * other.rung_values[rung], other.number)
                for other in trials[: trial.number + ahead + 1]
                if other.repeats is None and len(other.rung_values) > rung
            ]
            best = sorted(compared)[: max(1, len(compared) // factors[rung])]
            decisions[trial.number, rung] = any(number == trial.number for _, number in best)
    return decisions


@pytest.mark.parametrize("make", [rung_plan, screen_plan], ids=["rungs", "screen"])
def test_the_better_part_goes_on_by_the_rule(make: Callable[[], SearchPlan]) -> None:
    plan, executor = make(), cluster(MemoryStore())
    last_rung = 2 if make is rung_plan else 3
    trials = perform(plan, executor)
    decisions = decide_by_definition(trials, plan.search)
    for (number, rung), goes_on in decisions.items():
        trial = trials[number]
        assert (trial.rung > rung) == goes_on
        assert trial.state == ("complete" if trial.rung == last_rung else "pruned")
    states = [trial.state for trial in trials]
    assert 1 <= states.count("complete") < states.count("pruned")
    # The score of a trial that ended at a rung is nobody's score.
    for trial in trials:
        assert trial.result is not None
        assert bool(trial.result.values) == bool(trial.metrics) == (trial.state == "complete")
        assert list(trial.result.steps) == trial.rung_values
    (best,) = evaluator_of(plan, executor.store).select_best(trials)
    assert best.state == "complete"


def test_each_rung_is_evaluated_once_and_only_by_those_who_reach_it() -> None:
    plan, executor = rung_plan(), cluster(MemoryStore())
    trials = perform(plan, executor)
    jobs = dev_jobs(executor.done)
    assert len({job.fingerprint for job in jobs}) == len(jobs)
    by_update: dict[int, int] = {}
    for job in jobs:
        pause: Any = job.payload.get("pause") or {"update": 5}
        by_update[pause["update"]] = by_update.get(pause["update"], 0) + 1
    distinct = [trial for trial in trials if trial.repeats is None]
    reached = [sum(trial.rung >= rung for trial in distinct) for rung in range(3)]
    assert by_update == {
        update: 2 * count for update, count in zip((1, 3, 5), reached, strict=True)
    }
    # A rung names the whole evaluation, whose work folder its state is in.
    whole = {job.fingerprint for job in jobs if "pause" not in job.payload}
    best = evaluator_of(plan, executor.store).select_best(trials)[0]
    of_best = [job for job in jobs if job.label.endswith(f"trial {best.number} to update 1")]
    pauses: list[Any] = [job.payload["pause"] for job in of_best]
    assert {pause["evaluation"] for pause in pauses} <= whole


def test_a_screen_is_evaluated_first_and_on_its_tasks_alone() -> None:
    plan, executor = screen_plan(rungs=[], reduction_factor=4), cluster(MemoryStore())
    trials = perform(plan, executor)
    jobs, distinct = dev_jobs(executor.done), [t for t in trials if t.repeats is None]
    screens = [job for job in jobs if job.payload.get("kind") == "screen"]
    assert len(screens) == len(distinct) and len({job.fingerprint for job in jobs}) == len(jobs)
    assert all(" sid on dev trial " in job.label for job in screens)
    in_full = [trial for trial in distinct if trial.state == "complete"]
    assert 1 <= len(in_full) < len(distinct)
    assert len(jobs) == len(screens) + 2 * len(in_full)
    for trial in distinct:
        (key,) = plan.rung_evaluations(trial.proposal, trial.number, 0)
        facts = executor.store.manifest("evaluate", key)
        assert trial.rung_values == [facts["screen"]["ridge"]]
    # Where less of the objective is better, the value is an error, and the smaller ones go on.
    by_error = screen_plan(screen={"by": "abx"}, objectives=["pr.per"], trials=12)
    trials = perform(by_error, cluster(MemoryStore()))
    assert all(trial.rung_values[0] < 100 for trial in trials)
    decisions = decide_by_definition(trials, by_error.search)
    assert all((trials[number].rung > rung) == on for (number, rung), on in decisions.items())


@pytest.mark.parametrize(
    ("changes", "path", "sentence"),
    [
        (
            {"objectives": ["pr.per"]},
            "search.screen",
            "one label per utterance, unlike `pr`: leave",
        ),
        (
            {"screen": {"by": "abx"}, "objectives": ["sid.accuracy"]},
            "search.screen",
            "phone recognition on a corpus with alignments, unlike `sid`: leave",
        ),
        (
            {"screen": {"by": "ridge", "tasks": ["pr"]}},
            "search.screen.tasks",
            "unlike `pr`: name `sid` there, or leave `screen` out.",
        ),
        (
            {"screen": {"by": "ridge", "tasks": ["sit"]}},
            "search.screen.tasks[0]",
            "unknown evaluation of the objective `sit`. Did you mean `sid`? Allowed: pr, sid.",
        ),
        ({"screen": {"by": "ridge", "tasks": ["sid", "sid"]}}, "search.screen.tasks", "once"),
        ({"screen": {"by": "cka"}}, "search.screen.by", "must be 'ridge', 'nearest_mean' or"),
        ({"screen": {}}, "search.screen.by", "is needed but missing"),
        ({"screen": "ridge"}, "search.screen", "must be a mapping"),
        ({"rungs": [], "objectives": ["distance"]}, "search.screen", "by the score or one metric"),
        ({"rungs": [], "stop_early": "median"}, "search.stop_early", "`median` and `screen` both"),
        ({"sampler": "gp"}, "search.sampler", "take one of `tpe`, `random`"),
    ],
)
def test_a_faulty_screen_gets_one_sentence(
    changes: dict[str, Any], path: str, sentence: str
) -> None:
    if not changes.get("rungs", True):
        changes["reduction_factor"] = 4
    with pytest.raises((SpecError, SweepError)) as caught:
        screen_plan(**changes)
    ((where, text),) = caught.value.mistakes
    assert where == path and sentence in text


@pytest.mark.parametrize("make", [rung_plan, screen_plan], ids=["rungs", "screen"])
def test_what_ends_when_does_not_matter(make: Callable[[], SearchPlan]) -> None:
    runs = [
        describe(perform(make(), cluster(MemoryStore(), workers, seed)))
        for workers, seed in ((1, 0), (3, 1), (16, 2))
    ]
    assert runs[0] == runs[1] == runs[2]


@pytest.mark.parametrize("make", [rung_plan, screen_plan], ids=["rungs", "screen"])
def test_killed_three_times_it_is_the_same_search_and_nothing_is_evaluated_twice(
    make: Callable[[], SearchPlan],
) -> None:
    undisturbed = describe(perform(make(), cluster(MemoryStore())))
    store, done = MemoryStore(), []
    for count in (2, 6, 11):
        executor = cluster(store, workers=4, seed=count)
        with pytest.raises(Killed):
            perform(make(), executor, KillsAfter(count))
        done += executor.done
    last = cluster(store, workers=2, seed=7)
    assert describe(perform(make(), last)) == undisturbed
    done += last.done
    assert len({job.fingerprint for job in done}) == len(done)


@settings(derandomize=True, deadline=None, max_examples=6)
@given(
    trials=st.integers(1, 16),
    max_concurrent=st.integers(1, 12),
    rungs=st.sampled_from([[0.2, 1], [0.2, 0.4, 1], [0.2, 0.4, 0.6, 1]]),
    screen=st.sampled_from([None, {"by": "ridge"}]),
    reduction_factor=st.integers(2, 5),
    workers=st.integers(1, 9),
)
def test_no_decision_waits_for_a_proposal_that_waits_for_it(workers: int, **changes: Any) -> None:
    plan = search_plan(sampler="random", **changes)
    trials = perform(plan, cluster(MemoryStore(), workers))
    assert len(trials) == changes["trials"]
    assert all(trial.result is not None for trial in trials)
    assert any(trial.state == "complete" for trial in trials)


class RecordingStore(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.cleared: set[str] = set()

    def clear_work(self, stage: str, fingerprint: str) -> None:
        assert stage == "evaluate"
        self.cleared.add(fingerprint)


def test_the_states_of_a_trial_that_is_stopped_are_removed() -> None:
    plan, executor = rung_plan(), cluster(RecordingStore())
    trials = perform(plan, executor)
    stopped = [trial for trial in trials if trial.state == "pruned"]
    assert executor.store.cleared == {
        plan.evaluation(trial.proposal, trial.number, task)
        for trial in stopped
        for task in plan.tasks
    }


def test_a_repeated_merge_goes_as_far_as_its_first_trial() -> None:
    axes = {"alpha": {"choice": [0.25, 0.5, 0.75]}, "seed": "donors", "donors": ["narrow"]}
    plan = rung_plan(axes=axes, sampler="random")
    executor = cluster(MemoryStore())
    trials = perform(plan, executor)
    assert len({trial.key for trial in trials}) == 6
    for trial in trials:
        first = next(other for other in trials if other.key == trial.key)
        assert (trial.rung, trial.state) == (first.rung, first.state)


def test_a_trial_that_fails_is_no_rival() -> None:
    def facts(job: Job) -> dict[str, Any] | None:
        if "trial 1 " in job.label + " " or job.label.endswith("trial 4 to update 3"):
            return None
        made = smooth(job)
        if job.label == "evaluate pr on dev trial 6 to update 1":
            made["scores"][0]["values"] = [math.nan]
        return made

    trials = perform(rung_plan(reduction_factor=2), cluster(MemoryStore(), facts=facts))
    assert trials[1].state == trials[6].state == "failed" and trials[1].rung_values == []
    assert trials[6].error == "a value is not a finite number"
    assert all(trial.result is not None for trial in trials)


def test_a_task_without_training_is_evaluated_at_the_end_alone() -> None:
    spec = parse_space(search_space(trials=10, max_concurrent=5, **RUNGS), "test")
    plan = make_search_plan(spec, replace(inputs(), trains=lambda task: task != "sid"), 6)
    executor = cluster(MemoryStore())
    trials = perform(plan, executor)
    paused = [job for job in executor.done if "pause" in job.payload]
    assert paused and all("evaluate pr" in job.label for job in paused)
    assert all("sid.accuracy" not in metrics for t in trials for metrics in t.rung_metrics)
    assert all("sid.accuracy" in t.metrics for t in trials if t.state == "complete")


def test_rungs_without_a_task_that_trains_are_refused() -> None:
    spec = parse_space(search_space(objectives=["sid.accuracy"], **RUNGS), "test")
    with pytest.raises(SweepError) as caught:
        make_search_plan(spec, replace(inputs(), trains=lambda task: task != "sid"), 6)
    ((path, text),) = caught.value.mistakes
    assert path == "search.rungs" and "updates of `sid`, which trains no probe" in text


@pytest.mark.parametrize(
    ("changes", "path", "sentence"),
    [
        ({"rungs": [0.3, 0.1, 1]}, "search.rungs", "must ascend, as in [0.02, 0.1, 0.3, 1]"),
        ({"rungs": [0.1, 0.1, 1]}, "search.rungs", "must ascend"),
        ({"rungs": [0.1, 0.3]}, "search.rungs", "must end at 1, the full evaluation"),
        ({"rungs": [0, 1]}, "search.rungs", "must be fractions of a task's updates, above 0"),
        ({"rungs": [0.5, 1.5]}, "search.rungs", "above 0 and at most 1"),
        ({"rungs": [1]}, "search.rungs", "must have a rung before the full evaluation"),
        ({"rungs": [0.1, 1], "objectives": ["distance"]}, "search.rungs", "one objective"),
        ({"rungs": [0.1, 1], "sampler": "gp"}, "search.sampler", "take one of `tpe`, `random`"),
        ({"rungs": [0.1, 1], "stop_early": "median"}, "search.stop_early", "keep one of the two"),
        ({"reduction_factor": 3}, "search.reduction_factor", "belongs to `search.rungs`"),
        ({"rungs": [0.1, 1], "reduction_factor": 1}, "search.reduction_factor", "at least 2"),
        ({"rungs": "0.1"}, "search.rungs", "must be a list"),
    ],
)
def test_faulty_rungs_get_one_sentence(changes: dict[str, Any], path: str, sentence: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_space(search_space(**changes), "test")
    ((where, text),) = caught.value.mistakes
    assert where == path and sentence in text


def test_a_search_without_rungs_keeps_its_fingerprint() -> None:
    plain = parse_space(search_space(), "test").search
    assert plain is not None
    assert not {"rungs", "reduction_factor", "screen"} & plain.model_dump(mode="json").keys()
    assert rung_plan().fingerprint != rung_plan(rungs=[], reduction_factor=4).fingerprint
    assert rung_plan().fingerprint != screen_plan().fingerprint


def test_the_update_of_a_rung() -> None:
    (task, _) = search_plan().tasks
    updates = [find_pause(task.model_copy(update={"updates": 300}), r) for r in (0.001, 0.1, 0.3)]
    assert updates == [1, 30, 90]


def test_the_trials_that_are_expected_at_each_rung() -> None:
    """Against decisions about values in random order."""
    search = search_plan(trials=60, max_concurrent=8, rungs=[0.02, 0.1, 0.3, 1]).search
    assert count_lookahead(search) == 2
    source, runs = Random(0), 200
    reached = [0] * 4
    for _ in range(runs):
        trials: list[Any] = [_Reached(number) for number in range(60)]
        rules = Rungs(search)
        for trial in trials:
            trial.rung_values.append(source.random())
        while decisions := rules.decide(trials):
            for trial, goes_on in decisions:
                if not goes_on:
                    trial.state = "pruned"
                elif len(trial.rung_values) < 3:
                    trial.rung_values.append(source.random())
                    trial.rung += 1
                else:
                    trial.rung += 1
        for trial in trials:
            for rung in range(trial.rung + 1):
                reached[rung] += 1
    means = [count / runs for count in reached]
    assert means == pytest.approx(expect_trials(search), abs=1.0)


class _Reached:
    """As much of a trial as the rule needs."""

    def __init__(self, number: int) -> None:
        self.number, self.repeats, self.state, self.rung = number, None, "running", 0
        self.rung_values: list[float] = []


@pytest.mark.parametrize(("objective", "value"), [("sid.accuracy", 85.0), ("pr.per", 15.0)])
def test_a_screen_counts_as_an_error_where_less_is_better(objective: str, value: float) -> None:
    search: Any = SimpleNamespace(screen=SimpleNamespace(by="abx"), objectives=[objective])
    evaluator = TrialEvaluator(search=search, tasks=[], references={}, pretrained={})
    assert evaluator.rung_value({"abx.one": 80.0, "abx.two": 90.0, "pr.per": 3.0}, 0) == value


def test_a_constraint_that_is_kept_makes_up_for_no_other() -> None:
    broken: Any = SimpleNamespace(result=SimpleNamespace(violations=[-5.0, 2.0, 1.0]))
    assert trials._total_violation(broken) == 3.0
