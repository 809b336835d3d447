"""The report of a search: every trial in the CSV, its figures, and a section in which no name
breaks out."""

from __future__ import annotations

import csv
from typing import Any

import pytest

from benchmarks.search_idle import MemoryStore
from speechft_ray.report.search_section import make_search_files, render_search_section
from speechft_ray.report.search_summary import (
    SearchResults,
    count_saved_evaluations,
    search_sentences,
    trials_csv,
)
from tests.search.search_fakes import CURVE, cluster, evaluator_of, perform, search_plan

PNG = b"\x89PNG\r\n\x1a\n"


def findings(**changes: Any) -> SearchResults:
    plan, executor = search_plan(**changes), cluster(MemoryStore(), workers=1)
    trials = perform(plan, executor)
    evaluator = evaluator_of(plan, executor.store)
    return SearchResults(
        plan=plan,
        evaluator=evaluator,
        trials=trials,
        chosen=evaluator.select_best(trials),
        saved=count_saved_evaluations(plan, trials, executor.store),
        importances={"alpha": 0.9, "method": 0.1},
    )


def test_every_trial_is_in_the_table() -> None:
    found = findings()
    lines = list(csv.DictReader(trials_csv(found).splitlines()))
    assert [int(line["trial"]) for line in lines] == list(range(16))
    assert [line["state"] for line in lines] == [trial.state for trial in found.trials]
    (chosen,) = [line for line in lines if line["chosen"] == "1"]
    best = max(float(line["objective.score"]) for line in lines if line["objective.score"])
    assert float(chosen["objective.score"]) == best
    assert float(chosen["alpha"]) == found.chosen[0].proposal.merge.alpha
    assert {name for name in lines[0] if name.startswith("dev.")} == {
        "dev.pr.per",
        "dev.sid.accuracy",
        "dev.distance",
    }


@pytest.mark.parametrize(
    ("changes", "there"),
    [
        ({}, {"history", "slice", "importance"}),
        ({"objectives": ["score", "distance"]}, {"history", "slice", "importance", "pareto"}),
        (
            {"axes": {"ties": CURVE, "method": "ties"}, "seeds": [0]},
            {"history", "slice", "importance", "layers"},
        ),
    ],
)
def test_figures_are_drawn_where_there_is_something_to_see(
    changes: dict[str, Any], there: set[str]
) -> None:
    files, section = make_search_files(findings(**changes))
    images = {
        name.removeprefix("search_").removesuffix(".png"): data
        for name, data in files.items()
        if name.endswith(".png")
    }
    assert {name for name, data in images.items() if data is not None} == there
    assert all(data.startswith(PNG) for data in images.values() if data is not None)
    assert section.count("<img") == len(there)


def test_a_sweep_without_a_search_has_none_of_it() -> None:
    files, section = make_search_files(None)
    assert set(files.values()) == {None} and section == ""


def test_a_front_names_its_size() -> None:
    found = findings(objectives=["score", "distance"])
    assert f"{len(found.chosen)} merges are on the Pareto front" in " ".join(
        search_sentences(found)
    )
    assert render_search_section(found, {}).count("★") == len(found.chosen)


def test_nothing_kept_the_constraint_is_said() -> None:
    found = findings(constraints=[{"metric": "pr.per", "no_worse_than": 1}], stop_early="none")
    assert (
        "No proposal keeps every constraint; this one breaks them least."
        in search_sentences(found)[-1]
    )


def test_an_error_cannot_break_out_of_the_page() -> None:
    found = findings()
    found.trials[0].proposal.values["<script>"] = "<b>"  # type: ignore[index]
    assert "<script>" not in render_search_section(found, {})
