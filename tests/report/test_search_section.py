"""The report of a search: every trial in the CSV, its figures, and a section of escaped names."""

from __future__ import annotations

import csv
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.search_idle import MemoryStore
from speechft_ray.report.search_charts import chart_history
from speechft_ray.report.search_section import SearchSection, make_search_files, make_search_section
from speechft_ray.report.search_summary import (
    SearchResults,
    count_saved_evaluations,
    describe_trial,
    search_sentences,
    trials_csv,
)
from speechft_ray.report.templates import render_template
from tests.search.search_fakes import CURVE, cluster, evaluator_of, perform, search_plan

PNG = b"\x89PNG\r\n\x1a\n"


def search_results(**changes: Any) -> SearchResults:
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


def render(results: SearchResults) -> str:
    return render_template("search.html", search=make_search_section(results, {}))


def test_every_trial_is_in_the_table() -> None:
    results = search_results()
    lines = list(csv.DictReader(trials_csv(results).splitlines()))
    assert [int(line["trial"]) for line in lines] == list(range(16))
    assert [line["state"] for line in lines] == [trial.state for trial in results.trials]
    (chosen,) = [line for line in lines if line["chosen"] == "1"]
    best = max(float(line["objective.score"]) for line in lines if line["objective.score"])
    assert float(chosen["objective.score"]) == best
    assert float(chosen["alpha"]) == results.chosen[0].proposal.merge.alpha
    assert {name for name in lines[0] if name.startswith("dev.")} == {
        "dev.pr.per",
        "dev.sid.accuracy",
        "dev.distance",
    }


def test_a_merge_whose_fine_tuning_changed_nothing_is_not_called_chosen() -> None:
    results = search_results()
    best = results.chosen[0]
    assert f"Chosen on dev: trial {best.number}" in render(results) and "★" in render(results)
    page = render(replace(results, untuned={best.key: "not tuned: a kept the encoder of update 3"}))
    assert f"Best on dev: trial {best.number}" in page
    assert "It cannot be chosen; not tuned: a kept the encoder of update 3." in page
    assert "Chosen on dev" not in page and "★" not in page


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
    files, section = make_search_files(search_results(**changes))
    images = {
        name.removeprefix("search_").removesuffix(".png"): data
        for name, data in files.items()
        if name.endswith(".png")
    }
    assert {name for name, data in images.items() if data is not None} == there
    assert all(data.startswith(PNG) for data in images.values() if data is not None)
    assert isinstance(section, SearchSection)
    assert render_template("search.html", search=section).count("<img") == len(there)


def test_a_sweep_without_a_search_has_none_of_it() -> None:
    files, section = make_search_files(None)
    assert set(files.values()) == {None} and section is None


def test_a_front_names_its_size() -> None:
    results = search_results(objectives=["score", "distance"])
    assert f"{len(results.chosen)} merges are on the Pareto front" in " ".join(
        search_sentences(results)
    )
    assert render(results).count("★") == len(results.chosen)


def test_nothing_kept_the_constraint_is_said() -> None:
    results = search_results(
        constraints=[{"metric": "pr.per", "no_worse_than": 1}], stop_early="none"
    )
    assert (
        "No proposal keeps every constraint; this one breaks them least."
        in search_sentences(results)[-1]
    )


def test_an_error_cannot_break_out_of_the_page() -> None:
    results = search_results()
    results.trials[0].proposal.values["<script>"] = "<b>"  # type: ignore[index]
    assert "<script>" not in render(results)


def test_a_pointer_sees_the_merge_of_each_trial() -> None:
    results = search_results()
    group = chart_history(results)
    assert group is not None
    traces = {trace.label: trace for trace in group.charts[0].traces}
    complete, best = traces["evaluated in full"], traces["best so far"]
    trials = {trial.number: trial for trial in results.trials if trial.state == "complete"}
    assert dict(complete.points) == {
        number: trial.result.values[0] for number, trial in trials.items() if trial.result
    }
    (number, _), note = complete.points[0], complete.notes[0].split("\n")
    assert note[:2] == [f"trial {number:g}", describe_trial(trials[int(number)])]
    values = [value for _, value in best.points]
    assert values == sorted(values) and values[-1] == max(value for _, value in complete.points)
    assert len(traces["stopped early, so far"].points) == 5
