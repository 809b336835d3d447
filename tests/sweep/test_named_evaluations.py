"""Two evaluations of one task in one sweep, and evaluations that are shown but not scored."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from speechft_ray.core.errors import SpecError
from speechft_ray.core.metrics import METRICS, metric
from speechft_ray.core.objectives import select_tasks
from speechft_ray.core.records import Job, read_scores
from speechft_ray.core.score import superb_score
from speechft_ray.core.space import parse_space
from speechft_ray.core.store import Store
from speechft_ray.report.lines import group_rows, metric_names
from speechft_ray.sweep.plan import Plan, make_plan
from speechft_ray.sweep.protocols import EncoderRow
from speechft_ray.sweep.rows import read_references, read_rows
from tests.search.search_fakes import search_space
from tests.sweep.fakes import FakeExecutor, FakeObserver, fake_facts, inputs, run_plan, space, sweep

PR: dict[str, Any] = {
    "task": "pr",
    "corpus": {"options": {"part": "pr"}},
    "updates": 5,
    "seeds": 2,
}
CZECH: dict[str, Any] = {**PR, "name": "czech", "corpus": {"options": {"part": "phones"}}}
SID: dict[str, Any] = {
    "task": "sid",
    "corpus": {"options": {"part": "sid"}},
    "updates": 5,
    "seeds": 2,
}
ZH: dict[str, Any] = {
    "task": "asr_zh",
    "in_score": False,
    "corpus": {"options": {"part": "pr"}},
    "updates": 5,
}


def run_sweep(folder: Path, *evaluations: dict[str, Any], **score: Any) -> tuple[Plan, Store]:
    changes = {"score": score} if score else {}
    plan = make_plan(sweep(evaluate=list(evaluations), **changes), inputs())
    store = Store(folder)

    def make_facts(job: Job) -> dict[str, Any]:
        if "asr_zh" in job.label:
            splits = ("dev", "test")
            return {
                "scores": [
                    {"metric": "asr_zh.cer", "split": split, "values": [20.0]} for split in splits
                ]
            }
        return fake_facts(job)

    executor = FakeExecutor(store, facts=make_facts)
    assert run_plan(plan, store, executor, FakeObserver(), lambda _: None, threading.Event()) == []
    return plan, store


def mistakes_of(*evaluations: dict[str, Any], **changes: Any) -> dict[str, str]:
    with pytest.raises(SpecError) as caught:
        parse_space(space(evaluate=list(evaluations), **changes), "test")
    return dict(caught.value.mistakes)


def test_both_evaluations_of_a_task_are_in_the_table_and_in_the_score(tmp_path: Path) -> None:
    topline = {"pr.per": 0, "pr.per.czech": 0, "sid.accuracy": 100}
    plan, store = run_sweep(tmp_path, PR, CZECH, SID, zero="measured", topline=topline)
    row = read_rows(plan, store)[1]
    for name, key in zip(("pr.per", "pr.per.czech"), plan.rows[1].evaluations, strict=False):
        (score,) = [
            item for item in read_scores(store.manifest("evaluate", key)) if item.split == "test"
        ]
        assert score.metric == "pr.per" and row.test[name] == score.mean
    assert row.test["pr.per"] != row.test["pr.per.czech"]
    assert {"pr.per", "pr.per.czech", "sid.accuracy", "score"} <= set(row.dev)
    references = read_references(plan, store)
    values = {name: row.test[name] for name in references}
    assert set(values) == set(topline)
    # Each evaluation counts as a task: the mean of three shares.
    shares = [(values[name] - zero) / (one - zero) for name, (zero, one) in references.items()]
    assert row.test["score"] == pytest.approx(1000 * sum(shares) / 3)
    assert superb_score(values, references) == pytest.approx(row.test["score"])
    assert "pr.per.czech" in metric_names(group_rows(read_rows(plan, store)))


def test_a_task_outside_the_score_is_measured_and_does_not_change_it(tmp_path: Path) -> None:
    def rows(folder: str, *evaluations: dict[str, Any]) -> list[EncoderRow]:
        return read_rows(*run_sweep(tmp_path / folder, *evaluations))

    alone, beside = rows("a", PR, SID), rows("b", PR, SID, ZH)
    assert [row.test["score"] for row in beside] == [row.test["score"] for row in alone]
    assert {row.test["asr_zh.cer"] for row in beside} == {20.0}
    assert all("asr_zh.cer" not in row.test for row in alone)


def test_the_paper_needs_no_reference_for_a_task_outside_the_score(tmp_path: Path) -> None:
    rows = read_rows(*run_sweep(tmp_path, PR, SID, ZH, zero="paper"))
    assert all("score" in row.test and row.test["asr_zh.cer"] == 20.0 for row in rows)


def test_names_and_the_score_are_no_part_of_an_evaluation() -> None:
    plain, renamed = (
        make_plan(sweep(evaluate=[first, SID]), inputs())
        for first in (PR, {**PR, "name": "english", "in_score": False})
    )
    assert set(plain.jobs) == set(renamed.jobs) and plain.fingerprint != renamed.fingerprint
    assert [dict(job.payload) for job in plain.jobs.values()] == [
        dict(job.payload) for job in renamed.jobs.values()
    ]


def test_labels_tell_evaluations_apart() -> None:
    plan = make_plan(
        sweep(
            evaluate=[PR, CZECH],
            score={"zero": "measured", "topline": {"pr.per": 0, "pr.per.czech": 0}},
        ),
        inputs(),
    )
    labels = [job.label for job in plan.of_stage("evaluate")]
    assert sum(label.startswith("evaluate pr.czech ") for label in labels) == len(labels) / 2


def test_two_evaluations_with_one_label_are_refused() -> None:
    assert mistakes_of(PR, SID, PR) == {
        "evaluate[2]": "evaluates `pr` like evaluate[0]: give one a `name`."
    }
    text = mistakes_of({**PR, "updates": {"grid": [5, 10]}}, SID)["evaluate[0]"]
    assert text == (
        "has several values, and each would be `pr`: list one entry for each, with a `name` of "
        "its own."
    )


def test_a_score_needs_a_task() -> None:
    evaluations = [{**PR, "in_score": False}, ZH]
    assert mistakes_of(*evaluations)["evaluate"] == (
        "must have at least one entry in the score, but all are `in_score: false`."
    )


def test_a_named_metric_has_the_direction_and_the_format_of_its_own() -> None:
    item = metric("pr.per.czech")
    assert (item.title, item.task, item.higher_is_better) == ("PR PER (czech)", "pr.czech", False)
    assert "pr.per.czech" in METRICS and "pr.czech" not in METRICS and "pr.per." not in METRICS
    assert "pr.wer.czech" not in METRICS


def test_a_search_uses_named_metrics_and_skips_what_is_not_scored() -> None:
    topline = {"pr.per": 0, "pr.per.czech": 0, "sid.accuracy": 100}
    raw = search_space(objectives=["pr.per.czech"], stop_early="none")
    raw |= {
        "evaluate": [PR, CZECH, SID, {**SID, "name": "shown", "in_score": False}],
        "score": {"zero": "measured", "topline": topline},
    }
    spec = parse_space(raw, "test")
    assert spec.search is not None
    assert [item.label for item in select_tasks(spec, spec.search)] == ["pr.czech"]
    by_score = spec.search.model_copy(update={"objectives": ("score",)})
    assert [item.label for item in select_tasks(spec, by_score)] == ["pr", "pr.czech", "sid"]
    raw["search"]["objectives"] = ["pr.per.slovak"]
    with pytest.raises(SpecError, match="slovak"):
        parse_space(raw, "test")
