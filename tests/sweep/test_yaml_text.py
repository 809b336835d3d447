"""YAML texts: the values of YAML 1.1, their places, and what is refused with its line."""

from __future__ import annotations

import datetime
import math
from typing import Any

import pytest

from speechft_ray.sweep.yaml_text import (
    DEEPEST_NESTING,
    YamlError,
    YamlSyntaxError,
    load_yaml,
    read_yaml,
)

VALUES: list[tuple[str, Any]] = [
    *(("yes", True), ("No", False), ("on", True), ("OFF", False), ("true", True), ("False", False)),
    *(("y", "y"), ("N", "N"), ("tRue", "tRue"), ("1e-4", 1e-4), ("1E+3", 1e3), ("-1e-3", -1e-3)),
    *(("+1e3", 1e3), ("5.e-4", 5e-4), (".5", 0.5), ("1.", 1.0), ("1.5e3", 1.5e3), ("1e", "1e")),
    *(("e5", "e5"), ("1_000", 1000), ("1_0.5", 10.5), ("0755", 493), ("007", 7), ("08", "08")),
    *(("0o17", "0o17"), ("0x1F", 31), ("0b101", 5), ("+3", 3), ("-0", 0), ("1:30", 90)),
    *(("2024-01-01", datetime.date(2024, 1, 1)), ("2024-1-1", "2024-1-1")),
    *(("2024-01-01e", "2024-01-01e"), ("null", None), ("~", None), ("", None), ("none", "none")),
    *(
        (".inf", math.inf),
        ("-.inf", -math.inf),
        ("inf", "inf"),
        ("nan", "nan"),
        ("1e400", math.inf),
    ),
    *(("1.2.3", "1.2.3"), ("'1'", "1"), ('"yes"', "yes"), ("!!str 5", "5"), ("!!float 5", 5.0)),
    *(("9223372036854775807", 2**63 - 1), ("=", "="), ("<<", "<<"), ("a b", "a b")),
]


@pytest.mark.parametrize(("text", "value"), VALUES)
def test_values_are_those_of_yaml_1_1(text: str, value: Any) -> None:
    for whole, part in ((load_yaml(f"x: {text}"), "x"), (load_yaml(f"- {text}"), 0)):
        assert whole[part] == value and type(whole[part]) is type(value)
    assert math.isnan(load_yaml(".nan"))


def test_anchors_and_merge_keys() -> None:
    text = """
first: &a {x: 1, y: {z: [2]}}
second: {<<: *a, x: 3}
third: {<<: [{x: 4}, *a]}
fourth: [*a, *a]
"""
    data = load_yaml(text)
    assert data["second"] == {"x": 3, "y": {"z": [2]}}
    assert data["third"] == {"x": 4, "y": {"z": [2]}}
    assert data["fourth"] == [data["first"], data["first"]]
    data["fourth"][0]["y"]["z"].append(0)
    assert data["first"]["y"] == {"z": [2]}, "an alias is a copy"


def test_every_path_has_its_place() -> None:
    text = read_yaml("a: &x\n  - b.c: 1\n    d: [2,\n        3]\ne:\n  <<: {f: 1}\n  g: *x\n")
    places = {
        "a": (1, 1), "a[0]": (2, 5), "a[0].b.c": (2, 5), "a[0].d": (3, 5), "a[0].d[1]": (4, 9),
        "e": (5, 1), "e.f": (6, 8), "e.g": (7, 3), "e.g[0]": (2, 5), "": (1, 1),
    }  # fmt: skip
    assert {path: text.places[path] for path in places} == places
    # What is not there has the place of what is nearest above it.
    assert text.place_of("a[0].nothing[3].x") == (2, 5)
    assert text.place_of("nothing") == (1, 1)
    assert read_yaml("# nothing\n").place_of("a") is None


def test_a_name_may_stand_for_two_anchors_one_after_the_other() -> None:
    assert load_yaml("[&a 1, *a, &a 2, *a]") == [1, 1, 2, 2]


def bomb(first: str, item: str) -> str:
    """Nine levels, each with nine aliases of the level below."""
    aliases = [", ".join([f"*a{level}"] * 9) for level in range(8)]
    levels = [item.format(text) for text in aliases]
    return "\n".join(f"a{level}: &a{level} {text}" for level, text in enumerate([first, *levels]))


@pytest.mark.parametrize(
    ("text", "line", "sentence"),
    [
        ("x: 1\ny: 2\nx: 3", 3, "the key `x` stands twice in one mapping, first in line 1"),
        ("a:\n  {b: 1, c: {d: 1, d: 2}}", 2, "the key `d` stands twice in one mapping"),
        ("a: &a {b: 1}\nc: {<<: *a, <<: *a}", 2, "the key `<<` stands twice"),
        ("true: 1\nyes: 2", 2, "the key `yes` stands twice"),
        ("a: 1\nb: !!python/object/apply:os.system ['ls']", 2, "the tag `!!python/object/apply"),
        ("!include other.yaml", 1, "the tag `!include` is not allowed, since nothing"),
        ("a: !!set {b, c}", 1, "the tag `!!set` is not allowed"),
        ("a: !!binary aGk=", 1, "the tag `!!binary` is not allowed"),
        ("a:\n- 2024-13-45", 2, "`2024-13-45` is no date"),
        ("a: !!int abc", 1, "`abc` is no whole number"),
        ("a: 123456789012345678901234567890", 1, "the whole number `1234567890123456789012345678"),
        ("a:\n  b: " + "9" * 5000, 2, "is no whole number"),
        ('a: "\\ud800"', 1, "half of a surrogate pair is no text"),
        ("? [1, 2]\n: 3", 1, "a key is a list or a mapping, but must be text"),
        ("a: {{ value }}", 1, "a key is a list or a mapping"),
        ("a: &a [*a]", 1, "or an alias is part of itself"),
        ("a: &a {<<: *a}", 1, "or an alias is part of itself"),
        ("a: {<<: [1]}", 1, "`<<` must be a mapping or a list of mappings"),
        (bomb("[x]", "[{}]"), 1, "more than 100000 values with all aliases written out"),
        (bomb("{x: 1}", "{{<<: [{}]}}"), 1, "more than 100000 values with all aliases written out"),
    ],
)  # fmt: skip
def test_what_is_more_than_plain_values_is_refused(text: str, line: int, sentence: str) -> None:
    with pytest.raises(YamlError) as caught:
        load_yaml(text)
    assert not isinstance(caught.value, YamlSyntaxError)
    assert sentence in caught.value.sentence and caught.value.line == line
    assert len(str(caught.value).splitlines()) == 1 and str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("text", "line", "sentence"),
    [
        ("a: 1\nb: [1, 2", 2, "expected ',' or ']'"),
        ("a: 1\nb: c: d", 2, "no `:` is allowed here: check the indentation"),
        ("a:\n\t- x", 2, "indent with spaces, not with tabs"),
        ("a:\n  b: 1\n c: 2", 3, "this line is indented unlike the lines that it belongs to"),
        ("a: 1\nb\nc: 2", 3, "a key has no `:` behind it"),
        ("  a: 1\nb: 2", 2, "this line is indented unlike the lines before it"),
        ("a: 1\n---\nb: 2", 2, "but found another document"),
        ("a: 1\nb: *nobody", 2, "found undefined alias 'nobody'"),
        ("a: 1\nb: x\x07y", 2, "the character U+0007 is not allowed"),
        ("[" * 10_000, 1, f"nested more than {DEEPEST_NESTING} deep"),
    ],
)
def test_what_is_no_yaml_is_told_with_its_line(text: str, line: int, sentence: str) -> None:
    with pytest.raises(YamlSyntaxError) as caught:
        load_yaml(text)
    assert sentence in caught.value.sentence and caught.value.line == line
    assert len(str(caught.value).splitlines()) == 1 and str(caught.value).endswith(".")
