"""A search against the registries, the encoder and the disk: one sentence before anything is
computed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from speechft_ray.commands.parts import resolve_place
from speechft_ray.commands.search import check_disk, encoder_depth, plan_search
from speechft_ray.core.errors import SpecError, UserError
from speechft_ray.core.space import parse_space
from speechft_ray.core.store import Store
from speechft_ray.search.plan import SearchPlan
from tests.search.search_fakes import search_space


def plan_of(tmp_path: Path, **changes: Any) -> SearchPlan:
    spec = parse_space(search_space(**changes), "test")
    return plan_search(spec, resolve_place(spec, storage=tmp_path))


@pytest.mark.parametrize(
    ("axes", "sentence"),
    [
        (
            {"ties": {"density": {"uniform": [0, 0.5]}}},
            "search.axes.ties.density: must be greater than 0, but is 0.0 instead.",
        ),
        (
            {"ties": {"density": {"uniform": [0.5, 2]}}},
            "search.axes.ties.density: must be at most 1, but is 2.0 instead.",
        ),
        (
            {"ties": {"densty": 0.5}},
            "search.axes.ties.densty: unknown field `densty`. Did you mean `density`?",
        ),
        (
            {"method": {"choice": ["linear", "tise"]}, "ties": ...},
            "unknown merge method `tise`. Did you mean `ties`?",
        ),
        ({"linear": {"weights": [1, 2]}}, "search.axes.linear: the number of donors must be 2"),
        (
            {"linear": {"weights": {"per_layer": [0.1, 1]}}},
            "search.axes.linear: the number of donors must be 6",
        ),
    ],
)
def test_what_a_method_cannot_take_is_told_with_its_axis(
    tmp_path: Path, axes: dict[str, Any], sentence: str
) -> None:
    raw = search_space()["search"]["axes"]
    chosen = {name: value for name, value in {**raw, **axes}.items() if value is not ...}
    with pytest.raises(SpecError) as caught:
        plan_of(tmp_path, axes=chosen)
    assert sentence in str(caught.value)
    assert len(caught.value.mistakes) == 1


def test_the_depth_is_read_from_the_names() -> None:
    names = {"encoder.layers.0.fc1.weight": 0, "encoder.layers.11.fc1.weight": 0, "mask_emb": 0}
    assert encoder_depth(names) == 2
    assert encoder_depth({"feature_extractor.conv_layers.3.0.weight": 0}) == 0


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_too_little_disk_for_the_winner_is_said_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, store = plan_of(tmp_path), Store(tmp_path)
    place = resolve_place(plan.spec, storage=tmp_path)
    check_disk(plan, store, place)
    size = (
        9.5e6  # of the tiny encoder: two runs, their checkpoints, the winner twice and its control
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, int(8 * size)))
    with pytest.raises(
        UserError, match=r"GB free, but this search needs about 0\.09 GB for 2 fine-tuned models"
    ):
        check_disk(plan, store, place)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, int(9.2 * size)))
    check_disk(plan, store, place)
