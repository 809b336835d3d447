"""NAME=VALUE options have one meaning: the YAML of a search space, which includes JSON."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from speechft_ray.cli import main
from speechft_ray.cli.options import parse_options, read_resources
from speechft_ray.core.errors import UserError
from speechft_ray.merging.base import validate_params
from speechft_ray.sweep.yaml_text import load_yaml

JSON_TEXTS = [
    *("0", "-0", "12", "-7", "0.5", "-0.25", "1e-3", "1E-3", "1e5", "1.5e+3", "-2e-7", "2E0"),
    *("true", "false", "null", '"text"', '""', '"1e-3"', r'"tab\tquote\"u\u00e9"', '"a: b # c"'),
    *("[]", "[1,2]", "[2, 1]", "[0.5,1e-3,-1]", '["a","b"]', "[[1],[2,3]]", "[true,null]"),
    *("{}", '{"a":1}', '{"a": {"b": [1, 2]}, "c": null}'),
]


@pytest.mark.parametrize("text", JSON_TEXTS)
def test_json_values_are_read_as_json(text: str) -> None:
    value = parse_options([f"x={text}"], "--param")["x"]
    assert value == json.loads(text) and type(value) is type(json.loads(text))


@pytest.mark.parametrize(
    "text",
    [
        *("count", "mergekit", "none", "train-clean-100", "nan", "a=b", "path/to/file.tsv"),
        *(r"blocks\.(?P<layer>\d+)\.", r"(^|\.)pos_conv", r"^encoder\.", "__import__('os')"),
    ],
)
def test_other_values_are_text(text: str) -> None:
    assert parse_options([f"x={text}"], "--param") == {"x": text}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *((".5", 0.5), ("5.", 5.0), ("+3", 3), ("1.e-3", 1e-3), ("yes", True), ("off", False)),
        *(("~", None), ("", None), ("[a, b]", ["a", "b"]), ("{a: 1}", {"a": 1})),
    ],
)
def test_yaml_values_are_those_of_a_search_space(text: str, expected: Any) -> None:
    assert parse_options([f"x={text}"], "--option") == {"x": expected}
    assert load_yaml(f"x: {text}") == {"x": expected}


def test_numbers_that_were_text_validate_to_the_same_parameters() -> None:
    texts = {"density": "1e-1", "scale": ".5", "weights": "[2e0, 1]", "normalize": "no"}
    as_text = {"density": "1e-1", "scale": ".5", "weights": [2.0, 1], "normalize": "no"}
    options = parse_options([f"{name}={text}" for name, text in texts.items()], "--param")
    assert validate_params("ties", options) == validate_params("ties", as_text)


def test_names_are_stripped_and_values_may_hold_equals_signs() -> None:
    assert parse_options([" a =x=y", "b=1"], "--option") == {"a": "x=y", "b": 1}
    assert parse_options([], "--option") == {}


@pytest.mark.parametrize(
    ("pairs", "sentence"),
    [
        (["density"], r"`--param density` has no name or no value: write NAME=VALUE, for example"),
        (["=3"], r"`--param =3` has no name or no value: write NAME=VALUE"),
        ([""], r"`--param ` has no name or no value: write NAME=VALUE"),
        (["a=1", "b=2", "a=1"], r"--param `a` is given twice: give it once\."),
        (["a=1", " a=2"], r"--param `a` is given twice"),
        (["a=["], r"--param `a` has a value that is not YAML: `\[`; put text .* in quotes"),
        (["a=*x"], r"--param `a` has a value that is not YAML: `\*x`"),
        (["a=!!python/object/apply:os.getcwd []"], r"has a value that is not YAML"),
    ],
)
def test_mistakes_are_one_sentence(pairs: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        parse_options(pairs, "--param")
    assert len(str(caught.value).splitlines()) == 1


def test_no_other_parser_of_pairs_is_left() -> None:
    sources = (Path(__file__).parents[2] / "speechft_ray" / "cli").glob("*.py")
    parsers = {path.name for path in sources if 'partition("=")' in path.read_text("utf-8")}
    assert parsers == {"options.py"}


def test_resources_are_read_from_options() -> None:
    labels = ["ray.io/accelerator-type=in(A100, H100)", "market-type=!spot"]
    assert read_resources(8, 0.5, 64, labels) == {
        "cpus": 8,
        "gpus": 0.5,
        "memory_gb": 64,
        "labels": {"ray.io/accelerator-type": "in(A100, H100)", "market-type": "!spot"},
    }
    assert read_resources(None, None, None, []) == {}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ((0, None, None, []), "--cpus-per-trial must be above 0"),
        ((math.inf, None, None, []), "--cpus-per-trial must be above 0 and at most"),
        ((None, math.inf, None, []), "--gpus-per-trial must be"),
        ((None, None, 1e300, []), "--memory-per-trial must be above 0 GB and at most"),
        ((None, 1.5, None, []), "a share of one GPU"),
        ((None, None, -1, []), "--memory-per-trial must be above 0 GB"),
        *(
            ((None, None, None, [label]), f"--label must .*{re.escape(label)}")
            for label in ("A100", "=A100", "a=", "a=in()", "a=b c", "a=!!b", "a b=c")
        ),
    ],
)
def test_wrong_resources_get_one_sentence(options: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        read_resources(*options)


def test_the_bill_needs_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``run --calibrate`` once ran the sweep and measured nothing."""
    for option in (["--calibrate"], ["--throughput", "encode=5"]):
        assert main(["run", "--space", "alpha", "--storage", str(tmp_path / "runs"), *option]) == 2
        assert "are for --plan" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "runs").exists()
