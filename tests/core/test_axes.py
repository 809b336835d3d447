"""Axes, objectives and budget of a search: what is valid, and one sentence for each mistake."""

from __future__ import annotations

from typing import Any

import pytest

from speechft_ray.core.errors import SpecError
from speechft_ray.core.objectives import select_tasks
from speechft_ray.core.space import parse_space
from speechft_ray.core.specs import SearchSpec

RUN = {
    "name": "phones",
    "objectives": [{"head": "ctc", "corpus": {}, "column": "phones"}],
    "updates": 10,
}
GOOD: dict[str, Any] = {
    "name": "search",
    "finetune": [{**RUN, "anchor_penalty": {"grid": [0, 0.1]}}, {**RUN, "name": "speakers"}],
    "search": {
        "trials": 20,
        "axes": {
            "alpha": {"uniform": [0, 1]},
            "anchor_penalty": "donors",
            "method": {"choice": ["linear", "ties"]},
            "ties": {"density": {"loguniform": [0.05, 1]}},
        },
    },
    "evaluate": [
        {"task": "pr", "corpus": {}, "updates": 5},
        {"task": "sid", "corpus": {}, "updates": 5},
    ],
}


def mistakes(**changes: Any) -> dict[str, str]:
    raw = {
        **GOOD,
        "search": {
            key: value for key, value in {**GOOD["search"], **changes}.items() if value is not ...
        },
    }
    with pytest.raises(SpecError) as caught:
        parse_space(raw, "file.yaml")
    by_path = dict(caught.value.mistakes)
    assert len(by_path) == len(caught.value.mistakes)
    return by_path


def axes(**changes: Any) -> dict[str, Any]:
    axes = {**GOOD["search"]["axes"], **changes}
    return {"axes": {key: value for key, value in axes.items() if value is not ...}}


def test_a_search_needs_no_merges_and_has_its_defaults() -> None:
    spec = parse_space(GOOD, "file.yaml")
    assert spec.merge == () and spec.search is not None
    assert (spec.search.sampler, spec.search.objectives, spec.search.pruning_rule()) == (
        "tpe",
        ("score",),
        "bound",
    )


@pytest.mark.parametrize(("trials", "concurrency"), [(1, 4), (24, 4), (60, 7), (1600, 200)])
def test_concurrency_grows_with_the_budget(trials: int, concurrency: int) -> None:
    assert SearchSpec(trials=trials, axes={}).concurrency() == concurrency
    assert SearchSpec(trials=trials, axes={}, max_concurrent=9).concurrency() == 9


def test_merges_and_a_search_exclude_each_other() -> None:
    with pytest.raises(
        SpecError, match="merge: must be left out, since `search` proposes the merges"
    ):
        parse_space({**GOOD, "merge": [{"alpha": 0.5}]}, "file.yaml")
    with pytest.raises(
        SpecError, match="merge: is needed but missing, unless `search` proposes the merges"
    ):
        parse_space({key: value for key, value in GOOD.items() if key != "search"}, "file.yaml")


@pytest.mark.parametrize(
    ("changes", "path", "sentence"),
    [
        ({"trials": ...}, "trials", "is needed but missing."),
        ({"trials": 0}, "trials", "must be at least 1, but is 0 instead."),
        ({"smapler": "tpe"}, "smapler", "unknown field `smapler`. Did you mean `sampler`?"),
        ({"sampler": "tpee"}, "sampler", "must be 'tpe', 'cmaes', 'nsga2'"),
        ({"objectives": []}, "objectives", "must have at least 1"),
        (
            {"objectives": ["test.pr.per"]},
            "objectives[0]",
            "`test.pr.per` is measured on test, which a search never sees",
        ),
        ({"objectives": ["test.score"]}, "objectives[0]", "Write `score`."),
        (
            {"objectives": ["pr.pre"]},
            "objectives[0]",
            "unknown metric `pr.pre`. Did you mean `pr.per`?",
        ),
        (
            {"objectives": ["er.accuracy"]},
            "objectives[0]",
            "no task of this search yields `er.accuracy`: add `er`",
        ),
        ({"objectives": ["score", "dev.score"]}, "objectives", "must name each objective once."),
        (
            {"constraints": [{"metric": "pr.pre", "no_worse_than": 3}]},
            "constraints[0].metric",
            "unknown metric `pr.pre`",
        ),
        (
            {"constraints": [{"metric": "test.pr.per", "no_worse_than": 3}]},
            "constraints[0].metric",
            "never sees",
        ),
        (
            {"constraints": [{"metric": "pr.per", "no_worse_than": "x"}]},
            "constraints[0]",
            "must be a number or `pretrained`",
        ),
        (
            {"stop_early": "bound", "objectives": ["pr.per"]},
            "stop_early",
            "`bound` compares scores",
        ),
        (
            {"sampler": "cmaes"},
            "sampler",
            "`cmaes` moves numbers only: fix method, anchor_penalty, or take `tpe`.",
        ),
        (
            {"sampler": "greedy_soup"},
            "sampler",
            "`greedy_soup` chooses the donors itself and nothing else",
        ),
        (
            axes(tise={"density": 1}),
            "axes.tise",
            "unknown axis or method `tise`. Did you mean `ties`?",
        ),
        (
            axes(alhpa={"uniform": [0, 1]}),
            "axes.alhpa",
            "unknown axis or method `alhpa`. Did you mean `alpha`?",
        ),
        (
            axes(alpha={"uniform": [0, 1.5]}),
            "axes.alpha",
            "must stay within [0, 1], but reaches 0.0, 1.5.",
        ),
        (axes(alpha="much"), "axes.alpha", "must stay within [0, 1], but reaches 'much'."),
        (
            axes(alpha={"uniform": [1, 0]}),
            "axes.alpha",
            "`uniform` must be finite [low, high] with low < high",
        ),
        (
            axes(alpha={"unifrom": [0, 1]}),
            "axes.alpha",
            "must be a value or one of `uniform`, `loguniform`, `choice`",
        ),
        (
            axes(ties={"density": {"loguniform": [0, 1]}}),
            "axes.ties.density",
            "`loguniform` needs a low end above 0",
        ),
        (
            axes(ties=0.5),
            "axes.ties",
            "must be a mapping of the method's parameters, but is 0.5 instead.",
        ),
        (
            axes(ties={"density": {"uniform": [0, 1], "knots": 3}}),
            "axes.ties.density",
            "`knots` must be a whole number",
        ),
        (
            axes(method={"choice": ["ties"]}),
            "axes.method",
            "`choice` must be a list of at least two",
        ),
        (axes(donors=["nobody"]), "axes.donors", "unknown fine-tuning run `nobody`."),
        (axes(donors={"some": ["phones"]}), "axes.donors", "must be a list of names, `choice`"),
        (axes(donors=[{"a": 1}]), "axes.donors", "must"),
        (axes(donors={"choice": [[["phones"]]]}), "axes.donors", "must have names alone"),
        (axes(donors={"subset": [["phones"]]}), "axes.donors", "must have names alone"),
        (axes(donors=["phones", "phones"]), "axes.donors", "must name each donor once"),
        (
            axes(anchor_penalty=...),
            "axes",
            "leaves 2 fine-tuning runs of `phones` to merge; let the search pick one",
        ),
        (
            axes(anchor_penalty=0.1),
            "axes.anchor_penalty",
            "is searched with `anchor_penalty: donors`.",
        ),
        (
            axes(updates="donors"),
            "axes.updates",
            "unknown field that varies between fine-tuning runs of one name `updates`",
        ),
        ({"axes": {"alpha": 0.5, "donors": ["speakers"]}}, "axes", "there is nothing to search"),
        (
            {"axes": {"alpha": {"uniform": [0, 1]}, "donors": ["speakers"]}, "sampler": "cmaes"},
            "sampler",
            "at least two",
        ),
    ],
)
def test_slips_are_told_in_one_sentence(changes: dict[str, Any], path: str, sentence: str) -> None:
    sentences = mistakes(**changes)
    assert list(sentences) == [f"search.{path}"]
    assert sentence in sentences[f"search.{path}"]


def test_only_the_tasks_that_are_asked_for() -> None:
    spec = parse_space(GOOD, "file.yaml")
    assert spec.search is not None

    def tasks(**changes: Any) -> list[str]:
        search = SearchSpec.model_validate({**GOOD["search"], **changes})
        return [item.task for item in select_tasks(spec, search)]

    assert tasks() == ["pr", "sid"]
    assert tasks(objectives=["dev.sid.accuracy"]) == ["sid"]
    assert tasks(
        objectives=["sid.accuracy"],
        constraints=[{"metric": "pr.per", "no_worse_than": "pretrained"}],
    ) == [
        "pr",
        "sid",
    ]
    assert tasks(objectives=["distance"]) == ["pr"]
