"""From draws to merges: conditional parameters, donors, per-layer values, extreme points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from speechft_ray.core.space import parse_space
from speechft_ray.search.plan import make_search_plan
from speechft_ray.search.proposals import Proposal, SearchSpace, extreme_points, interpolate_curve
from tests.sweep.fakes import inputs, space

OBJECTIVE = {
    "head": "frame",
    "corpus": {"name": "synthetic", "options": {"part": "phones"}},
    "column": "phones",
}
RUN: dict[str, Any] = {"objectives": [OBJECTIVE], "updates": 10}
RUNS = [
    {**RUN, "name": "a", "anchor_penalty": {"grid": [0, 0.1]}},
    {**RUN, "name": "b", "updates": 11},
    {**RUN, "name": "c", "updates": 12},
]


class Scripted:
    """Draws scripted values, else the low end or the first option, and records the order."""

    def __init__(self, **values: Any) -> None:
        self.values = {name.replace("__", "."): value for name, value in values.items()}
        self.drawn: list[str] = []

    def number(self, name: str, low: float, high: float, log: bool) -> float:
        self.drawn.append(name)
        return float(self.values.get(name, low))

    def choice(self, name: str, options: Sequence[Any]) -> Any:
        self.drawn.append(name)
        return self.values.get(name, options[0])


def space_of(axes: dict[str, Any], depth: int = 6) -> SearchSpace:
    raw = space(finetune=RUNS, search={"trials": 9, "axes": {"anchor_penalty": "donors", **axes}})
    del raw["merge"]
    return make_search_plan(parse_space(raw, "test"), inputs(), depth).space


def names(proposal: Proposal) -> list[str]:
    return [run.spec.name for run, _ in proposal.donors]


def test_parameters_count_only_under_their_method() -> None:
    axes = {
        "method": {"choice": ["linear", "ties"]},
        "ties": {"density": {"uniform": [0.1, 1]}, "scope": "tensor"},
    }
    search_space = space_of({**axes, "donors": ["b"]})
    assert search_space.draw(first := Scripted()).merge.params == {}
    assert first.drawn == ["method"]
    assert search_space.draw(other := Scripted(method="ties")).merge.params == {
        "density": 0.1,
        "scope": "tensor",
    }
    assert other.drawn == ["method", "ties.density"]


def test_donors_are_all_one_set_or_a_subset() -> None:
    assert names(space_of({}).draw(Scripted())) == ["a", "b", "c"]
    choice = space_of({"donors": {"choice": ["a", ["b", "c"]]}})
    assert names(choice.draw(Scripted())) == ["a"]
    assert names(choice.draw(Scripted(donors="b+c"))) == ["b", "c"]
    subset = space_of({"donors": {"subset": ["a", "b", "c"]}})
    assert names(subset.draw(Scripted(with__b=False))) == ["a", "c"]
    assert names(subset.draw(Scripted(with__a=False, with__b=False, with__c=False))) == [
        "a"
    ]  # never none


def test_the_run_of_a_name_is_picked_by_its_field() -> None:
    several = space_of({"donors": {"subset": ["a", "b"]}})
    drawn = several.draw(script := Scripted(a__anchor_penalty=0.1))
    assert [run.spec.anchor_penalty for run, _ in drawn.donors] == [0.1, 0.0]
    assert script.drawn == [
        "with.a",
        "with.b",
        "a.anchor_penalty",
    ]  # `b` has one run, so there is nothing to pick
    assert len({key for _, key in several.runs}) == 4
    alone = space_of({"alpha": {"uniform": [0, 1]}, "donors": ["a"]})
    assert alone.draw(Scripted(anchor_penalty=0.1)).donors[0][0].spec.anchor_penalty == 0.1


def test_weights_per_donor() -> None:
    axes = {"donors": {"subset": ["b", "c"]}, "linear": {"weights": {"per_donor": [0.1, 1]}}}
    both = space_of(axes).draw(Scripted(linear__weights__c=0.7))
    assert both.merge.params["weights"] == [0.1, 0.7]
    one = space_of(axes).draw(Scripted(with__b=False, linear__weights__c=0.7))
    assert names(one) == ["c"] and one.merge.params["weights"] == [0.7]


def test_layers_free_and_as_a_curve() -> None:
    free = {"layers": {"per_layer": [0, 1]}, "front_end": {"uniform": [0, 1]}, "rest": 0.5}
    drawn = space_of({"donors": ["b"], "linear": free}, depth=4).draw(
        Scripted(linear__layers__2=0.9)
    )
    assert drawn.merge.params == {"layers": [0.0, 0.0, 0.9, 0.0], "front_end": 0.0, "rest": 0.5}
    assert list(drawn.values) == [f"linear.layers.{index}" for index in range(4)] + [
        "linear.front_end"
    ]
    bent = space_of({"donors": ["b"], "linear": {"layers": {"curve": [0, 1], "knots": 3}}}, depth=5)
    drawn = bent.draw(Scripted(linear__layers__1=0.8, linear__layers__2=0.4))
    assert drawn.merge.params["layers"] == pytest.approx([0, 0.4, 0.8, 0.6, 0.4])


@pytest.mark.parametrize(("knots", "depth"), [(2, 1), (2, 6), (3, 6), (4, 12), (7, 24), (5, 3)])
def test_a_curve_is_linear_interpolation(knots: int, depth: int) -> None:
    values = np.random.default_rng(0).random(knots)
    places = np.linspace(0, 1, depth) if depth > 1 else np.zeros(1)
    assert interpolate_curve(list(values), depth) == pytest.approx(
        np.interp(places, np.linspace(0, 1, knots), values)
    )


def test_extreme_points_meet_every_option_and_every_end() -> None:
    axes = {
        "alpha": {"uniform": [0.2, 0.8]},
        "method": {"choice": ["linear", "ties"]},
        "ties": {"density": {"uniform": [0.1, 0.9]}, "scope": {"choice": ["global", "tensor"]}},
        "donors": {"choice": ["b", ["b", "c"]]},
    }
    proposals = extreme_points(space_of(axes))
    assert {proposal.merge.alpha for proposal in proposals} == {0.2, 0.8}
    assert {len(proposal.donors) for proposal in proposals} == {1, 2}
    ties = [proposal.merge.params for proposal in proposals if proposal.merge.method == "ties"]
    assert {params["density"] for params in ties} == {0.1, 0.9}
    assert {params["scope"] for params in ties} == {"global", "tensor"}
