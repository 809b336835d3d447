"""What every proposer of a search promises: the same proposals whatever ends when, within the axes,
to the budget's end."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from benchmarks.search_idle import MemoryStore, Silent
from speechft_ray.core.records import Job
from speechft_ray.core.specs import Sampler
from speechft_ray.search.plan import SearchPlan
from speechft_ray.search.proposals import TrialResult
from speechft_ray.search.trials import Trial, TrialEvaluator
from tests.search.search_fakes import (
    CURVE,
    DEPTH,
    cluster,
    evaluator_of,
    perform,
    proposer_of,
    search_plan,
    smooth,
    summarize,
)

CHANGES: dict[str, dict[str, Any]] = {
    "greedy_soup": {"axes": {"alpha": 0.4}},
    "cmaes": {
        "axes": {"alpha": {"uniform": [0, 1]}, "method": "ties", "ties": CURVE},
        "seeds": [0],
    },  # numbers only
    "gp": {"trials": 5, "max_concurrent": 2},  # seconds per proposal on a busy machine
}


def plan_of(sampler: str, **more: Any) -> SearchPlan:
    """A search that the sampler can do."""
    return search_plan(
        **{
            "sampler": sampler,
            "trials": 14,
            "max_concurrent": 4,
            **CHANGES.get(sampler, {}),
            **more,
        }
    )


@pytest.fixture(params=get_args(Sampler))
def sampler(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_order_of_ends_and_workers_do_not_matter(sampler: str) -> None:
    plan = plan_of(sampler)
    one = summarize(perform(plan, cluster(MemoryStore(), workers=1, seed=1)))
    other = summarize(perform(plan, cluster(MemoryStore(), workers=7, seed=2)))
    assert one == other
    assert len(one) == (
        3 if sampler == "greedy_soup" else plan.search.trials
    )  # two models and one mean


def test_a_restart_goes_on_where_it_was(sampler: str) -> None:
    class Dies(Silent):
        def on_trial_end(self, trial: Trial, evaluator: TrialEvaluator) -> None:
            if trial.number == 1:
                raise KeyboardInterrupt

    plan, store = plan_of(sampler), MemoryStore()
    undisturbed = summarize(perform(plan, cluster(MemoryStore())))
    first, second = cluster(store, seed=3), cluster(store, seed=4)
    with pytest.raises(KeyboardInterrupt):
        perform(plan, first, Dies())
    assert summarize(perform(plan, second)) == undisturbed
    assert not {job.fingerprint for job in first.done} & {job.fingerprint for job in second.done}


def test_proposals_stay_within_their_axes(sampler: str) -> None:
    plan = plan_of(sampler)
    for trial in perform(plan, cluster(MemoryStore())):
        merge = trial.proposal.merge
        assert merge.method in ("linear", "ties") and 0 <= merge.alpha <= 1
        if sampler == "cmaes":
            layers: Any = merge.params["layers"]
            assert len(layers) == DEPTH and all(0 <= value <= 1 for value in layers)
        elif merge.method == "ties":
            assert 0.05 <= float(merge.params["density"]) <= 1  # type: ignore[arg-type]
        else:
            assert merge.params == {}


def test_another_seed_is_another_search(sampler: str) -> None:
    if sampler == "greedy_soup":
        pytest.skip("nothing in it is drawn")
    one, other = (perform(plan_of(sampler, seed=seed), cluster(MemoryStore())) for seed in (0, 1))
    assert [trial.key for trial in one] != [trial.key for trial in other]


def test_failures_are_survived(sampler: str) -> None:
    def facts(job: Job) -> dict[str, Any] | None:
        return (
            None
            if job.label.startswith("evaluate sid on dev") and job.fingerprint < "8"
            else smooth(job)
        )

    trials = perform(plan_of(sampler, stop_early="none"), cluster(MemoryStore(), facts=facts))
    states = {trial.state for trial in trials}
    assert states <= {"complete", "failed"} and (len(states) == 2 or sampler == "greedy_soup")


@pytest.mark.parametrize("several", ["tpe", "nsga2", "nsga3", "gp", "random", "qmc"])
def test_several_objectives_and_a_constraint(several: str) -> None:
    more = {
        "objectives": ["score", "distance"],
        "constraints": [{"metric": "pr.per", "no_worse_than": 40}],
    }
    executor = cluster(MemoryStore())
    plan = plan_of(several, **more)
    trials = perform(plan, executor)
    assert len(trials) == plan.search.trials and evaluator_of(plan, executor.store).select_best(
        trials
    )


def test_a_proposer_learns(sampler: str) -> None:
    """Other results, other proposals; only random and quasi-random ignore results."""
    proposed = []
    for sign in (1.0, -1.0):
        count = 6 if sampler == "gp" else 40
        proposer, alphas = (
            proposer_of(
                plan_of(sampler, trials=count, seeds=[0, 1, 2][: 1 if sampler == "cmaes" else 3])
            ),
            [],
        )
        for number in range(count):
            proposal = proposer.ask() if proposer.needs(number) <= number else None
            if proposal is None:
                break
            alphas.append(str(proposal))
            gain = sign * (
                proposal.merge.alpha + len(proposal.donors) + 0.1 * proposal.donors[0][0].spec.seed
            )
            proposer.tell(number, TrialResult("complete", [gain], [], [gain]))
        proposed.append(alphas)
    assert (proposed[0] == proposed[1]) == (sampler in ("random", "qmc"))
