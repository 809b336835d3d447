"""Sequential chains and early checkpoints in a plan: starts, bases of merges, titles of rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from speechft_ray.core.chains import build_chains
from speechft_ray.core.errors import SpecError, UserError
from speechft_ray.core.records import Job
from speechft_ray.core.space import parse_space
from speechft_ray.core.store import Store
from speechft_ray.search.plan import make_search_plan
from speechft_ray.sweep.lineage import find_pretrained, read_lineage
from speechft_ray.sweep.plan import Plan, PlannedRow, make_plan
from speechft_ray.sweep.scheduler import missing_jobs
from tests.search.test_proposals import Scripted
from tests.sweep.fakes import inputs, space, sweep

OBJECTIVE = {
    "head": "frame",
    "corpus": {"name": "synthetic", "options": {"part": "phones"}},
    "column": "phones",
}


def run(name: str, updates: int, after: Any = None, **more: Any) -> dict[str, Any]:
    start = {"after": {"finetune": after} if isinstance(after, str) else after} if after else {}
    return {"name": name, "objectives": [OBJECTIVE], "updates": updates, **start, **more}


def plan_of(*runs: dict[str, Any], merge: Any = ({"alpha": 0.25},)) -> Plan:
    return make_plan(sweep(finetune=list(runs), merge=list(merge)), inputs())


def recipe(plan: Plan, key: str) -> dict[str, Any]:
    assert plan.jobs[key].stage == "merge"
    return dict(plan.jobs[key].payload)


def seed_of(job: Job) -> object:
    spec: Any = job.payload["spec"]
    return spec["seed"]


def row(plan: Plan, title: str) -> PlannedRow:
    (only,) = [row for row in plan.rows if row.title == title]
    return only


def tunings(plan: Plan) -> dict[str, Job]:
    return {str(job.payload["title"]): job for job in plan.of_stage("finetune")}


def test_each_stage_starts_from_the_merge_before_it_and_is_merged_with_its_start() -> None:
    """phi_t = (1 - alpha) phi_(t-1) + alpha theta'_t, three stages deep."""
    last_run = run("er", 3, {"finetune": "sid", "alpha": 0.5})
    plan = plan_of(run("pr", 1), run("sid", 2, "pr"), last_run)
    jobs, base = tunings(plan), "encoder-0"
    assert list(jobs) == ["pr", "pr>sid", "pr>sid>er"]
    for title, alpha in (("pr", 0.25), ("pr>sid", 0.5), ("pr>sid>er", 0.25)):
        tuned = jobs[title]
        assert tuned.payload["start"] == base and (base in tuned.needs) == (base != "encoder-0")
        shown = " after_alpha=" if "after_alpha" in tuned.label else ""
        assert bool(shown) == (base != "encoder-0") and title in tuned.label
        (key,) = [
            job.fingerprint
            for job in plan.of_stage("merge")
            if job.payload["donors"] == [tuned.fingerprint] and job.payload["alpha"] == alpha
        ]
        assert recipe(plan, key)["base"] == base and set(plan.jobs[key].needs) == {
            tuned.fingerprint,
            base,
        } - {"encoder-0"}
        base = key
    last = row(plan, "linear alpha=0.25 pr>sid>er seed=0")
    assert last.params == {"method": "linear", "alpha": 0.25, "finetune": "pr>sid>er", "seed": 0}


def test_after_is_identity_by_the_start_alone() -> None:
    plain = tunings(plan_of(run("pr", 1), run("sid", 2)))
    chains = {
        alpha: tunings(plan_of(run("pr", 1), run("sid", 2, {"finetune": "pr", "alpha": alpha})))
        for alpha in (0, 0.25, 1)
    }
    assert all(jobs["pr"].fingerprint == plain["pr"].fingerprint for jobs in chains.values())
    keys = [chains[alpha]["pr>sid"].fingerprint for alpha in (0.25, 1)]
    assert len({*keys, plain["sid"].fingerprint}) == 3
    # Nothing of the earlier run in the start is the pre-trained encoder: the same work as without
    # it.
    assert chains[0]["pr>sid"].fingerprint == plain["sid"].fingerprint


def test_names_of_the_stages_are_not_identity() -> None:
    one, other = plan_of(run("a", 1), run("b", 2, "a")), plan_of(run("x", 1), run("y", 2, "x"))
    assert one.fingerprint == other.fingerprint and set(one.jobs) == set(other.jobs)


def test_the_alpha_of_an_earlier_stage_is_shown_where_it_varies() -> None:
    after = {"finetune": "pr", "alpha": {"grid": [0.25, 1]}}
    plan = plan_of(run("pr", 1), run("sid", 2, after), run("er", 3, "sid"))
    titles = [row.title for row in plan.rows if row.params["alpha"] == 0.25]
    assert titles == [
        "linear alpha=0.25 pr seed=0",
        "linear alpha=0.25 pr>sid after_alpha=0.25 seed=0",
        "linear alpha=0.25 pr>sid after_alpha=1 seed=0",
        "linear alpha=0.25 pr>sid>er after_after_alpha=0.25 seed=0",
        "linear alpha=0.25 pr>sid>er after_after_alpha=1 seed=0",
    ]


def test_several_runs_of_the_earlier_name_are_each_followed_by_a_stage() -> None:
    grid = {"seed": {"grid": [0, 1]}}
    plan = plan_of(
        run("pr", 1, anchor_penalty={"grid": [0.0, 0.1]}, **grid), run("sid", 2, "pr", **grid)
    )
    later = [job for job in plan.of_stage("finetune") if job.payload["title"] == "pr>sid"]
    assert len({job.fingerprint for job in later}) == 4
    for job in later:
        (donor,) = recipe(plan, str(job.payload["start"]))["donors"]
        assert seed_of(plan.jobs[donor]) == seed_of(job)
    shown = {
        row.params.get("after_anchor_penalty")
        for row in plan.rows
        if row.params["finetune"] == "pr>sid"
    }
    assert shown == {0.0, 0.1}


def test_a_stage_may_bear_the_name_of_a_run_of_its_own() -> None:
    """`sid` alone and `sid` after `pr`: donors are then those that have the same start."""
    plan = plan_of(
        run("pr", 1),
        run("sid", 2),
        run("sid", 2, "pr"),
        merge=[{"donors": ["pr", "sid"], "alpha": 0.25}],
    )
    assert {row.params["finetune"] for row in plan.rows} == {"none", "pr+sid"}


@pytest.mark.parametrize(
    ("runs", "path", "text"),
    [
        (
            [run("sid", 2, "prr"), run("pr", 1)],
            "finetune[0]",
            "unknown fine-tuning run `prr`. Did you mean `pr`?",
        ),
        ([run("sid", 2, "sid")], "finetune[0]", "leads back to `sid` (sid > sid)"),
        (
            [run("a", 1, "b"), run("b", 1, "c"), run("c", 1, "a")],
            "finetune[2]",
            "leads back to `c` (c > b > a > c)",
        ),
        (
            [run("pr", 1), run("sid", 2, "pr", seed={"grid": [0, 3, 4]})],
            "finetune[1]",
            "no run `pr` has the seed 3",
        ),
    ],
)
def test_a_faulty_chain_gets_one_sentence(runs: list[Any], path: str, text: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_space(space(finetune=runs), "file.yaml")
    sentences = [
        sentence for place, sentence in caught.value.mistakes if place == f"{path}.after.finetune"
    ]
    assert len(sentences) == 1 and sentences[0].startswith(text)
    assert len(caught.value.mistakes) == (3 if len(runs) == 3 else 1)


def test_donors_of_different_starts_are_refused() -> None:
    with pytest.raises(
        UserError,
        match="donors pr, sid start from different encoders: merge runs that have the same `after`",
    ):
        plan_of(run("pr", 1), run("sid", 2, "pr"), merge=[{"donors": ["pr", "sid"]}])
    plan = plan_of(
        run("pr", 1), run("sid", 2, "pr"), run("er", 3, "pr"), merge=[{"donors": ["sid", "er"]}]
    )
    (key,) = [row.key for row in plan.rows if row.params["alpha"] == 0.25]
    assert recipe(plan, key)["base"] == tunings(plan)["pr>er"].payload["start"]


def search(runs: list[Any], **axes: Any) -> Any:
    raw = {
        **space(finetune=runs, search={"trials": 4, "axes": {"alpha": {"uniform": [0, 1]}, **axes}})
    }
    del raw["merge"]
    return make_search_plan(parse_space(raw, "file.yaml"), inputs(), 6)


def test_a_search_proposes_stages_of_chains() -> None:
    runs = [run("pr", 1), run("sid", 2, {"finetune": "pr", "alpha": {"grid": [0.25, 1]}})]
    search_plan = search(runs, donors=["sid"], after_alpha="donors")
    drawn = search_plan.space.draw(Scripted(alpha=0.5))
    donor = drawn.donors[0][1]
    start = str(search_plan.jobs[donor].payload["start"])
    evaluation = search_plan.evaluation(drawn, 0, search_plan.tasks[0])
    assert search_plan.jobs[start].stage == "merge"
    assert {start, donor} <= set(search_plan.jobs[evaluation].needs)
    assert search_plan.params(drawn)["after_alpha"] == 0.25
    assert search_plan.params(search_plan.space.draw(Scripted(after_alpha=1.0)))["after_alpha"] == 1
    # Alpha 0 of a later stage is what it started from.
    assert search_plan.merge_key(search_plan.space.draw(Scripted(alpha=0))) == start


def test_a_search_refuses_donors_of_different_starts() -> None:
    runs = [run("pr", 1), run("sid", 2, "pr")]
    with pytest.raises(
        SpecError, match="pr, sid start from different encoders, so no merge can have them together"
    ):
        search(runs, donors={"subset": ["pr", "sid"]})
    assert search(runs, donors={"choice": ["pr", "sid"]})


def test_what_is_lacking_comes_in_the_order_of_its_needs(tmp_path: Path) -> None:
    plan, store = plan_of(run("pr", 1), run("sid", 2, "pr"), run("er", 3, "sid")), Store(tmp_path)
    goals = [job.fingerprint for job in plan.of_stage("evaluate")]
    seen: set[str] = set()
    for key, job in missing_jobs(goals, plan.jobs, store).items():
        assert set(job.needs) <= seen, f"{job.label} comes before what it needs"
        seen.add(key)
    assert seen == set(plan.jobs)
    chain = next(job for job in plan.of_stage("evaluate") if "alpha=0.25 pr>sid>er" in job.label)
    with store.publish("merge", str(chain.payload["encoder"]), {}):
        pass
    assert list(missing_jobs([chain.fingerprint], plan.jobs, store))[-1] == chain.fingerprint
    assert not any(
        job.stage == "finetune"
        for job in missing_jobs([chain.fingerprint], plan.jobs, store).values()
    )


def test_the_store_remembers_the_chain_of_an_encoder(tmp_path: Path) -> None:
    plan, store = plan_of(run("pr", 1), run("sid", 2, "pr")), Store(tmp_path)
    for job in plan.of_stage("merge"):
        with store.publish("merge", job.fingerprint, job.payload):
            pass
    last = row(plan, "linear alpha=0.25 pr>sid seed=0").key
    first = str(tunings(plan)["pr>sid"].payload["start"])
    assert [item["merge"] for item in read_lineage(store, last)] == [first, last]
    assert find_pretrained(store, first) == find_pretrained(store, "encoder-0") == "encoder-0"


def test_a_checkpoint_is_identity_only_where_it_is_not_the_best_and_has_its_own_controls() -> None:
    before = plan_of(run("pr", 1, keep_at=[0.2]))
    plan = plan_of(
        run("pr", 1, keep_at=[0.2]), merge=[{"alpha": 0.25, "checkpoint": {"grid": ["best", 0.2]}}]
    )
    assert set(before.jobs) < set(plan.jobs)
    rows = [(row.params["alpha"], row.params.get("at")) for row in plan.rows]
    assert sorted(rows, key=str) == [
        (0.0, None),
        (0.25, 0.2),
        (0.25, None),
        (1.0, 0.2),
        (1.0, None),
    ]
    early = row(plan, "linear alpha=0.25 pr at=0.2 seed=0")
    assert recipe(plan, early.key)["checkpoint"] == 0.2
    assert "checkpoint" not in recipe(plan, row(plan, "linear alpha=0.25 pr seed=0").key)


def test_every_run_with_its_chain_comes_in_the_given_order() -> None:
    spec = sweep(finetune=[run("sid", 2, "pr"), run("pr", 1)])
    assert [tuning.title for tuning in build_chains(spec.finetune)] == ["pr>sid", "pr"]
