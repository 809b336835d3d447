"""Every registered method and its parameters may be axes of a search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from speechft_ray.commands.parts import resolve_place
from speechft_ray.commands.search import plan_search
from speechft_ray.core.space import parse_space
from speechft_ray.merging.base import METHODS, MergeParams
from tests.search.search_fakes import search_space


def make_axis(value: Any) -> Any:
    """Returns the range up to a default that is a number, else the default itself."""
    if isinstance(value, float) and value > 0:
        return {"uniform": [0.9 * value, value]}
    return value


@pytest.mark.parametrize("method", METHODS.names())
def test_a_search_may_propose_the_method(method: str, tmp_path: Path) -> None:
    kind = METHODS.get(method)
    defaults = kind.params()
    axes = {
        name: make_axis(getattr(defaults, name))
        for name in kind.params.model_fields
        if name not in MergeParams.model_fields and getattr(defaults, name) is not None
    }
    raw = search_space(axes={"alpha": {"uniform": [0, 1]}, "method": method, method: axes})
    fewest, _ = kind.donors(defaults)
    gathered = {"gather": [kind.gather]} if kind.gather else {}
    raw["finetune"] = [
        {**raw["finetune"][0], "name": f"run{number}", "seed": number, **gathered}
        for number in range(fewest)
    ]
    spec = parse_space(raw, "test")
    plan = plan_search(spec, resolve_place(spec, storage=tmp_path))
    assert plan.space.axes.methods() == (method,)
    assert set(plan.space.axes.params.get(method, {})) == set(axes)
