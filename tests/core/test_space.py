"""Search spaces: the axes, and every mistake with its path."""

from __future__ import annotations

import copy
import datetime
import math
from typing import Any

import pytest

from speechft_ray.core.errors import SpecError
from speechft_ray.core.expansion import LARGEST_EXPANSION, expand
from speechft_ray.core.space import parse_space

GOOD: dict[str, Any] = {
    "name": "sweep",
    "finetune": [
        {
            "name": "phones",
            "objectives": [{"head": "ctc", "corpus": {}, "column": "phones"}],
            "updates": 10,
        }
    ],
    "merge": [{"alpha": 0.25}],
    "evaluate": [{"task": "pr", "corpus": {}, "updates": 5}],
}


def mistakes(**changes: Any) -> dict[str, str]:
    """The mistakes of the good space with some sections changed (``...`` removes one)."""
    raw = {
        key: value for key, value in {**copy.deepcopy(GOOD), **changes}.items() if value is not ...
    }
    with pytest.raises(SpecError) as caught:
        parse_space(raw, "file.yaml")
    assert caught.value.where == "file.yaml"
    by_path = dict(caught.value.mistakes)
    assert len(by_path) == len(caught.value.mistakes), "two sentences for one path"
    return by_path


def merges(*entries: Any) -> list[Any]:
    return list(parse_space({**copy.deepcopy(GOOD), "merge": list(entries)}, "file.yaml").merge)


def test_a_space_without_axes_is_taken_as_it_is() -> None:
    spec = parse_space(GOOD, "file.yaml")
    assert (spec.name, spec.encoder) == ("sweep", "tiny_hubert")
    assert [entry.alpha for entry in spec.merge] == [0.25]
    assert spec.finetune[0].objectives[0].head == "ctc"


def test_grids_are_crossed_in_order() -> None:
    entries = merges(
        {
            "alpha": {"grid": [0, 0.5]},
            "params": {"density": {"grid": [0.1, 0.2, 0.3]}},
            "method": "ties",
        }
    )
    assert [(entry.alpha, entry.params["density"]) for entry in entries] == [
        (0.0, 0.1), (0.0, 0.2), (0.0, 0.3), (0.5, 0.1), (0.5, 0.2), (0.5, 0.3),
    ]  # fmt: skip


def test_an_axis_may_stand_inside_a_list_and_for_a_whole_entry() -> None:
    entries = merges(
        {"params": {"weights": [1, {"grid": [2, 3]}]}}, {"grid": [{"alpha": 0}, {"alpha": 1}]}
    )
    assert [entry.params.get("weights") for entry in entries] == [[1, 2], [1, 3], None, None]
    assert [entry.alpha for entry in entries] == [0.25, 0.25, 0.0, 1.0]


def test_uniform_and_loguniform_cover_their_range() -> None:
    draws = [
        (entry["a"], entry["b"])
        for entry in expand(
            {
                "a": {"uniform": [2, 4]},
                "b": {"loguniform": [1e-6, 1e-2]},
                "samples": 2000,
                "sample_seed": 7,
            }
        )
    ]
    flat, log = [a for a, _ in draws], [math.log10(b) for _, b in draws]
    assert 2 <= min(flat) < 2.02 and 3.98 < max(flat) <= 4
    assert sum(flat) / 2000 == pytest.approx(
        3.0, abs=5 * 2 / math.sqrt(12 * 2000)
    )  # five standard errors
    assert -6 <= min(log) < -5.96 and -2.04 < max(log) <= -2
    assert sum(log) / 2000 == pytest.approx(-4.0, abs=5 * 4 / math.sqrt(12 * 2000))


def test_choice_draws_every_value() -> None:
    drawn = [
        entry["a"] for entry in expand({"a": {"choice": ["x", "y", {"z": 1}]}, "samples": 300})
    ]
    assert {str(value) for value in drawn} == {"x", "y", "{'z': 1}"}


def test_draws_are_made_anew_for_each_grid_point() -> None:
    entries = list(expand({"a": {"grid": [1, 2]}, "b": {"uniform": [0, 1]}, "samples": 3}))
    assert [entry["a"] for entry in entries] == [1, 1, 1, 2, 2, 2]
    assert len({entry["b"] for entry in entries}) == 6


def test_draws_depend_on_the_seed_alone() -> None:
    def draws(seed: int) -> list[float]:
        return [
            entry["a"]
            for entry in expand({"a": {"uniform": [0, 1]}, "samples": 5, "sample_seed": seed})
        ]

    assert draws(1) == draws(1) != draws(2)
    # Python's Mersenne Twister with seed 0: the same on every machine and in every version since
    # 3.2.
    assert draws(0)[0] == pytest.approx(0.8444218515250481)


def test_expansion_leaves_the_file_untouched() -> None:
    raw = {**copy.deepcopy(GOOD), "merge": [{"alpha": {"uniform": [0, 1]}, "samples": 2}]}
    before = copy.deepcopy(raw)
    parse_space(raw, "file.yaml")
    assert raw == before


@pytest.mark.parametrize(
    ("entry", "path", "sentence"),
    [
        (
            {"alpha": {"grid": []}},
            "alpha",
            "`grid` must be a list that is not empty, but is [] instead.",
        ),
        (
            {"alpha": {"grid": 3}},
            "alpha",
            "`grid` must be a list that is not empty, but is 3 instead.",
        ),
        (
            {"alpha": {"uniform": [1, 0]}},
            "alpha",
            "`uniform` must be finite [low, high] with low < high, but is [1, 0] instead.",
        ),
        (
            {"alpha": {"uniform": [0, True]}},
            "alpha",
            "`uniform` must be finite [low, high] with low < high",
        ),
        ({"alpha": {"uniform": [0, math.inf]}}, "alpha", "`uniform` must be finite [low, high]"),
        (
            {"params": {"a": [{"uniform": [1, 2, 3]}]}},
            "params.a[0]",
            "`uniform` must be finite [low, high]",
        ),
        (
            {"alpha": {"loguniform": [0, 1]}},
            "alpha",
            "`loguniform` needs a low end above 0, but it is 0 instead.",
        ),
        (
            {"alpha": {"uniform": [0, 1]}, "samples": 0},
            "samples",
            "must be a whole number of at least 1, but is 0 instead.",
        ),
        (
            {"alpha": {"uniform": [0, 1]}, "samples": True},
            "samples",
            "must be a whole number of at least 1, but is True instead.",
        ),
        (
            {"alpha": {"uniform": [0, 1]}, "sample_seed": [1]},
            "sample_seed",
            "must be a whole number, but is [1] instead.",
        ),
        (
            {"alpha": {"grid": [0, 1]}, "samples": 2},
            "samples",
            "needs an axis that is drawn: uniform, loguniform or choice.",
        ),
        (
            {"alpha": {"uniform": [0, 1]}, "samples": LARGEST_EXPANSION + 1},
            "",
            "the axes give more than 100000 points",
        ),
    ],
)
def test_malformed_axes_are_told_at_their_place(
    entry: dict[str, Any], path: str, sentence: str
) -> None:
    ((place, text),) = mistakes(merge=[{"alpha": 0.5}, entry]).items()
    assert place == (f"merge[1].{path}" if path else "merge[1]")
    assert text.startswith(sentence)


def test_all_mistakes_are_told_at_once() -> None:
    sentences = mistakes(
        finetune=[
            {"name": "a b", "updates": 0},
            {
                "name": "r",
                "objectives": [{"head": "ctc", "corpus": {"nam": "x"}, "column": "c", "weight": 0}],
                "updates": 2.5,
            },
        ],
        merge=[{"alpha": 3}, {"alpha": "much"}, "linear"],
        evaluate={"task": "pr"},
        score={"zero": "fbank", "topline": {"pr.per": "low"}},
        encodr="x",
    )
    assert sentences == {
        "finetune[0].name": (
            "must match pattern '^[A-Za-z0-9][A-Za-z0-9_.-]*$', but is 'a b' instead."
        ),
        "finetune[0].objectives": "is needed but missing.",
        "finetune[0].updates": "must be at least 1, but is 0 instead.",
        "finetune[1].objectives[0].corpus.nam": (
            "unknown field `nam`. Did you mean `name`? Allowed: name, options."
        ),
        "finetune[1].objectives[0].weight": "must be greater than 0, but is 0 instead.",
        "finetune[1].updates": "must be a whole number, but is 2.5 instead.",
        "merge[0].alpha": "must be at most 1, but is 3 instead.",
        "merge[1].alpha": "must be a number, but is 'much' instead.",
        "merge[2]": "must be a mapping, but is 'linear' instead.",
        "evaluate": "must be a list of entries, each starting with `- `.",
        "score.zero": "must be 'paper' or 'measured', but is 'fbank' instead.",
        "score.topline.pr.per": "must be a number, but is 'low' instead.",
        "encodr": "unknown field `encodr`. Did you mean `encoder`? "
        "Allowed: encoder, evaluate, finetune, merge, name, resources, score, search, stop_tuning.",
    }


def test_missing_and_empty_sections() -> None:
    assert mistakes(name=..., finetune=..., merge=[], evaluate=None) == {
        "name": "is needed but missing.",
        "finetune": "is needed but missing.",
        "merge": "must have at least 1, but is [] instead.",
        "evaluate": "must be a list of entries, each starting with `- `.",
    }


def test_a_mistake_in_an_axis_is_told_once() -> None:
    assert mistakes(
        merge=[{"alpha": {"grid": [0, 1, 2]}, "method": {"grid": ["linear", "ties"]}}]
    ) == {"merge[0].alpha": "must be at most 1, but is 2 instead."}


def test_paths_count_entries_of_the_file_not_of_its_expansion() -> None:
    sentences = mistakes(
        merge=[{"alpha": {"grid": [0, 0.5, 1]}}, {"alpha": {"grid": [0, 1]}, "donors": ["phonse"]}]
    )
    assert sentences == {
        "merge[1].donors": (
            "unknown fine-tuning run `phonse`. Did you mean `phones`? Allowed: phones."
        )
    }


def test_a_broken_run_is_not_called_unknown_too() -> None:
    other = {**GOOD["finetune"][0], "name": "speakers", "updates": 0}
    assert mistakes(
        finetune=[GOOD["finetune"][0], other], merge=[{"donors": ["phones", "speakers"]}]
    ) == {"finetune[1].updates": "must be at least 1, but is 0 instead."}


@pytest.mark.parametrize(
    ("donors", "sentences"),
    [
        ("all", {"merge[0].donors": "must be 'each' or a list, but is 'all' instead."}),
        (5, {"merge[0].donors": "must be 'each' or a list, but is 5 instead."}),
        ([], {"merge[0].donors": "must have at least 1, but is [] instead."}),
        (["a", 5], {"merge[0].donors[1]": "must be text, but is 5 instead."}),
    ],
)
def test_donors_are_each_or_a_list(donors: Any, sentences: dict[str, str]) -> None:
    assert mistakes(merge=[{"donors": donors}]) == sentences


def test_the_schedule_must_be_whole() -> None:
    entry = {**GOOD["finetune"][0], "schedule": [0.5, 0.4, 0.5]}
    assert mistakes(finetune=[entry]) == {
        "finetune[0]": "`schedule` must sum to 1, but sums to 1.4."
    }


def test_numbers_that_are_not_finite_are_refused_everywhere() -> None:
    entry = {**GOOD["finetune"][0], "peak_learning_rate": math.inf}
    assert mistakes(finetune=[entry], merge=[{"params": {"x": {"y": [1, math.nan]}}}]) == {
        "finetune[0].peak_learning_rate": "must be a finite number, but is inf instead.",
        "merge[0].params.x.y[1]": "must be a finite number, but is nan instead.",
    }


def test_values_that_json_cannot_say_are_refused() -> None:
    sentences = mistakes(merge=[{"params": {"day": datetime.date(2025, 2, 1)}}, {1: 2}])
    assert sentences["merge[0].params.day"].startswith(
        "must be text, a number, true, false, null, a list or a mapping"
    )
    assert sentences["merge[1][1]"] == "must be text, since it is a key, but is 1 instead."


def test_the_score_names_known_metrics() -> None:
    assert mistakes(score={"zero": "measured"}) == {
        "score.topline": (
            "is needed with `zero: measured`: the value of each metric that counts as 1000."
        )
    }
    sentences = mistakes(score={"topline": {"pr.pre": 2.5}})
    assert sentences["score.topline.pr.pre"].startswith(
        "unknown metric `pr.pre`. Did you mean `pr.per`?"
    )


@pytest.mark.parametrize("raw", [None, [], "text", 3])
def test_a_file_must_be_a_mapping(raw: Any) -> None:
    with pytest.raises(SpecError, match="must be a mapping with name"):
        parse_space(raw, "file.yaml")


def test_the_message_lists_every_path() -> None:
    with pytest.raises(SpecError) as caught:
        parse_space({**GOOD, "merge": [{"alpha": 3}, {"method": 4}]}, "file.yaml")
    assert str(caught.value).splitlines() == [
        "file.yaml has 2 mistakes:",
        "  merge[0].alpha: must be at most 1, but is 3 instead.",
        "  merge[1].method: must be text, but is 4 instead.",
    ]


def test_a_curve_over_alpha_is_a_grid_of_which_most_is_predicted() -> None:
    entries = merges({"alpha": {"curve": 5, "encode": [0.25, 0.75], "verify": 2}, "method": "ties"})
    assert [entry.alpha for entry in entries] == [0.25, 0.375, 0.5, 0.625, 0.75]
    assert [entry.predicted_from for entry in entries] == [
        *[(), (0.25, 0.75), (0.25, 0.75)],
        *[(0.25, 0.75), ()],
    ]
    assert [entry.verify for entry in entries] == [0, 2, 2, 2, 0]
    # By default three encodings from 0 to 1; alphas are those that a person would list.
    by_default = merges({"alpha": {"curve": 21}})
    assert [entry.alpha for entry in by_default] == [round(0.05 * n, 2) for n in range(21)]
    assert {entry.predicted_from for entry in by_default} == {(), (0.0, 0.5, 1.0)}


@pytest.mark.parametrize(
    ("entry", "path", "text"),
    [
        ({"alpha": {"curve": 21, "verify": 19}}, "alpha.verify", "from 1 to 18"),
        ({"alpha": {"curve": 21, "verify": 0}}, "alpha.verify", "from 1 to 18"),
        ({"alpha": {"curve": 2}}, "alpha.curve", "from 3 to 10000"),
        ({"alpha": {"curve": 3}}, "alpha", "leaves no alpha to predict"),
        ({"alpha": {"curve": 5, "encode": [0.5]}}, "alpha.encode", "at least two different"),
        ({"alpha": {"curve": 5, "encode": [0, 1.5]}}, "alpha.encode", "within [0, 1]"),
        ({"alpha": {"curve": 5, "encode": [0, 0, 1]}}, "alpha.encode", "different alphas"),
        ({"alpha": {"curve": 5, "verfy": 1}}, "alpha", "Did you mean `verify`?"),
        ({"alpha": {"curve": [0, 1], "knots": 4}}, "alpha", "is an axis of `search`"),
        ({"alpha": {"curve": 10**9}}, "alpha.curve", "from 3 to 10000"),
        ({"method": "slerp", "params": {"t": {"curve": 5}}}, "params.t", "only `alpha` of a merge"),
        ({"method": "ties", "params": {"scale": {"curve": 5}}}, "params.scale", "straight line"),
    ],
)
def test_a_curve_that_cannot_be_predicted_gets_one_sentence(
    entry: dict[str, Any], path: str, text: str
) -> None:
    by_path = mistakes(merge=[entry])
    assert list(by_path) == [f"merge[0].{path}"]
    assert text in by_path[f"merge[0].{path}"]


def test_a_curve_over_lambda_is_refused() -> None:
    run = {**GOOD["finetune"][0], "anchor_penalty": {"curve": 5}}
    assert "straight line" in mistakes(finetune=[run])["finetune[0].anchor_penalty"]
