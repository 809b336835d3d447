"""Mistakes in the options of heads, corpora, tasks and merge methods become sentences."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from speechft_ray.core.errors import SpecError
from speechft_ray.core.validation import path_text, validate


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    size: Annotated[int, Field(ge=1, lt=10)] = 1


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")

    inner: Inner | None = None
    parts: tuple[Inner, ...] = ()
    mode: Literal["a", "b"] = "a"


def test_valid_options() -> None:
    assert validate(Options, {"parts": [{"size": 2}]}, "here").parts == (Inner(size=2),)


def test_every_mistake_has_its_path() -> None:
    with pytest.raises(SpecError) as caught:
        validate(
            Options,
            {"inner": {"sise": 3}, "parts": [{}, {"size": 0}, {"size": 10}], "mode": "c"},
            "task `x`",
        )
    assert caught.value.where == "task `x`"
    assert caught.value.mistakes == (
        ("inner.sise", "unknown field `sise`. Did you mean `size`? Allowed: size."),
        ("parts[1].size", "must be at least 1, but is 0 instead."),
        ("parts[2].size", "must be less than 10, but is 10 instead."),
        ("mode", "must be 'a' or 'b', but is 'c' instead."),
    )


def test_the_whole_value_and_long_values() -> None:
    with pytest.raises(SpecError) as caught:
        validate(Options, ["x" * 100], "here")
    ((path, sentence),) = caught.value.mistakes
    assert path == "(all)"
    assert (
        sentence.startswith("must be a mapping, but is ['xxx")
        and sentence.endswith("... instead.")
        and len(sentence) < 110
    )


def test_paths_read_as_they_are_written() -> None:
    assert path_text(("merge", 0, "params", "weights", 2)) == "merge[0].params.weights[2]"
    assert path_text(()) == ""
