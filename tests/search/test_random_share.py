"""Proposals that wait for no result: the same in every run, and evaluated while others wait."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from benchmarks.search_idle import MemoryStore
from speechft_ray.core.errors import SpecError
from speechft_ray.core.records import Job
from speechft_ray.core.space import parse_space
from speechft_ray.search.plan import SearchPlan
from tests.search.search_fakes import (
    cluster,
    perform,
    proposer_of,
    search_plan,
    search_space,
    smooth,
    summarize,
)
from tests.search.test_loop import Killed, KillsAfter, dev_jobs


def share_plan(**changes: Any) -> SearchPlan:
    return search_plan(**{"trials": 24, "random_share": 0.25, "stop_early": "none", **changes})


def test_every_fourth_proposal_depends_on_no_result() -> None:
    def noise(job: Job) -> dict[str, Any]:
        facts = smooth(job)
        for score in facts.get("scores", []):
            score["values"] = [Random(job.fingerprint).uniform(0, 100)]
        return facts

    plan = share_plan()
    trials = perform(plan, cluster(MemoryStore()))
    others = perform(share_plan(), cluster(MemoryStore(), facts=noise))
    proposer = proposer_of(plan)
    drawn = [proposer.draw_ahead(number) for number in range(24)]
    numbers = [number for number, proposal in enumerate(drawn) if proposal is not None]
    assert numbers == [3, 7, 11, 15, 19, 23]
    for number in numbers:
        assert trials[number].proposal == others[number].proposal == drawn[number]
    assert [trial.key for trial in trials] != [trial.key for trial in others]


@pytest.mark.parametrize("rungs", [[], [0.2, 0.6, 1]])
def test_what_ends_when_does_not_matter(rungs: list[float]) -> None:
    runs = [
        summarize(perform(share_plan(rungs=rungs), cluster(MemoryStore(), workers, seed)))
        for workers, seed in ((1, 0), (16, 2))
    ]
    assert runs[0] == runs[1]


def test_killed_it_is_the_same_search_and_nothing_is_evaluated_twice() -> None:
    undisturbed = summarize(perform(share_plan(), cluster(MemoryStore())))
    store, done = MemoryStore(), []
    for count in (3, 8):
        executor = cluster(store, workers=6, seed=count)
        with pytest.raises(Killed):
            perform(share_plan(), executor, KillsAfter(count))
        done += executor.done
    last = cluster(store, workers=2, seed=7)
    assert summarize(perform(share_plan(), last)) == undisturbed
    done += last.done
    assert len({job.fingerprint for job in done}) == len(done)
    assert len(dev_jobs(done)) == 2 * len({key for _, key, *_ in undisturbed})


def test_they_are_evaluated_while_the_next_proposal_waits() -> None:
    """One evaluation takes for ever. With a window of 5, trials 4 to 7 can start beside it; after
    them only what waits for no result."""

    def count_jobs(share: float) -> tuple[int, float]:
        plan = share_plan(max_concurrent=5, random_share=share)
        executor = cluster(MemoryStore(), workers=4)
        executor.seconds = lambda job: 1e6 if job.label.endswith("pr on dev trial 3") else 1.0
        ended: list[int] = []
        facts = executor.facts

        def note(job: Job) -> Any:
            if job.label.endswith("pr on dev trial 3"):
                ended.append(len(dev_jobs(executor.done)))
            return facts(job)

        executor.facts = note
        perform(plan, executor)
        return ended[0], executor.now

    few, long = count_jobs(0.0)
    many, shorter = count_jobs(0.25)
    # Trials 11, 15, 19 and 23 of the random share have two tasks each.
    assert many >= few + 8 and shorter < long


def test_samplers_without_a_model_have_no_share() -> None:
    for sampler in ("random", "qmc"):
        with pytest.raises(SpecError) as caught:
            parse_space(search_space(sampler=sampler, random_share=0.2), "test")
        ((path, text),) = caught.value.mistakes
        assert path == "search.random_share" and "leave it out" in text
    with pytest.raises(SpecError) as caught:
        parse_space(search_space(random_share=1), "test")
    ((path, text),) = caught.value.mistakes
    assert path == "search.random_share" and "must be less than 1" in text
