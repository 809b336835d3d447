"""Task options of a sweep spec are checked before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechft_ray.commands.checks import check_names
from speechft_ray.core.errors import SpecError
from speechft_ray.core.space import parse_space
from speechft_ray.sweep.yaml_text import load_yaml

SPACE = Path(__file__).parents[2] / "search_spaces" / "alpha.yaml"


def test_a_misspelt_option_is_named_with_its_path_and_the_nearest_name() -> None:
    raw = load_yaml(SPACE.read_text(encoding="utf-8"))
    raw["evaluate"][-1]["options"] = {"projectoin": 8}
    spec = parse_space(raw, "the space")
    with pytest.raises(SpecError) as raised:
        check_names(spec)
    sentence = "unknown field `projectoin`. Did you mean `projection`?"
    last = len(raw["evaluate"]) - 1
    ((path, text),) = raised.value.mistakes
    assert path == f"evaluate[{last}].options.projectoin"
    assert text.startswith(sentence)
