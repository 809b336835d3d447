"""Damaged search spaces end in a plan or in sentences with their lines, never in a traceback."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechft_ray.commands.checks import check_names
from speechft_ray.commands.parts import SEARCH_SPACES
from speechft_ray.core.errors import SpecError, UserError
from speechft_ray.search.plan import make_search_plan
from speechft_ray.sweep.plan import make_plan
from speechft_ray.sweep.space_file import open_space
from tests.sweep.fakes import inputs

SPACES = sorted(SEARCH_SPACES.rglob("*.yaml"))
WRONG_VALUES = (
    *("-1", "0", "1e400", "[]", "{}", "null", "''", "true", "[1, [2, {a: b}]]", "{gird: [1, 2]}"),
    *("2024-01-01", "2024-13-45", "!!python/name:os.system", "*nobody", "99999999999999999999"),
    *(
        "x" * 200,
        "{grid: []}",
        "{grid: 3, uniform: [0, 1]}",
        "'a\\nb'",
        '"\\ud800"',
        ".nan",
        "&a *a",
    ),
    *("{uniform: [1, 0]}", "{choice: [{grid: [1]}]}", "[a, b", "{a: 1, a: 2}", "~: 3", "? [a]"),
)
LETTERS = "\x00\x07\x1b\u0085\u2028\ufeff\t\r\né漢😀\ud7ff"

Change = Callable[[str, random.Random], str]


def _pick_line(text: str, source: random.Random) -> tuple[list[str], int]:
    lines = text.splitlines()
    return lines, source.choice(
        [i for i, line in enumerate(lines) if ":" in line and line[0] != "#"]
    )


def delete_line(text: str, source: random.Random) -> str:
    lines, index = _pick_line(text, source)
    return "\n".join(lines[:index] + lines[index + 1 :])


def repeat_line(text: str, source: random.Random) -> str:
    lines, index = _pick_line(text, source)
    return "\n".join([*lines[: index + 1], *lines[index:]])


def misspell_key(text: str, source: random.Random) -> str:
    keys = list(re.finditer(r"\w+(?=:)", text))
    key = source.choice(keys)
    letters = list(key.group())
    at = source.randrange(len(letters))
    letters[at] = source.choice(["", letters[at] * 2, "z", letters[at].upper()])
    return text[: key.start()] + "".join(letters) + text[key.end() :]


def put_wrong_value(text: str, source: random.Random) -> str:
    values = list(re.finditer(r"(?<=: )[^\s,{}\[\]#]+", text))
    value = source.choice(values)
    return text[: value.start()] + source.choice(WRONG_VALUES) + text[value.end() :]


def swap_values(text: str, source: random.Random) -> str:
    values = list(re.finditer(r"(?<=: )[^\n#]+", text))
    first, second = sorted(source.sample(values, 2), key=lambda value: value.start())
    return (
        text[: first.start()] + second.group() + text[first.end() : second.start()]
        + first.group() + text[second.end() :]
    )  # fmt: skip


def damage_indent(text: str, source: random.Random) -> str:
    lines, index = _pick_line(text, source)
    line = lines[index]
    lines[index] = source.choice([f" {line}", f"\t{line}", line[1:], line.strip(), f"- {line}"])
    return "\n".join(lines)


def cut_off(text: str, source: random.Random) -> str:
    return text[: source.randrange(len(text))]


def insert_letter(text: str, source: random.Random) -> str:
    at = source.randrange(len(text))
    return text[:at] + source.choice(LETTERS) + text[at:]


CHANGES: list[Change] = [
    *(delete_line, repeat_line, misspell_key, put_wrong_value, swap_values),
    *(damage_indent, cut_off, insert_letter),
]


def read_or_refuse(path: Path) -> str:
    """Plans a space file without any corpus or encoder; returns what is wrong with it, if any."""
    try:
        file = open_space(path)
        with file.name_lines():
            check_names(file.spec)
            if file.spec.search is None:
                make_plan(file.spec, inputs())
            else:
                make_search_plan(file.spec, inputs(), 6)
    except UserError as error:
        lines = str(error).splitlines()
        if isinstance(error, SpecError):
            assert lines[0].startswith(f"{path} has {len(error.mistakes)} mistake")
            assert len(lines) == 1 + len(error.mistakes) > 1, "a sentence is one line"
            assert len(set(lines)) == len(lines)
            last = len(path.read_text(encoding="utf-8").split("\n"))
            for line in lines[1:]:
                place = re.match(rf"  {re.escape(str(path))}:(\d+):(\d+): \S.*\.( \S.*)?", line)
                assert place is not None, line
                assert 1 <= int(place[1]) <= last
        else:
            (line,) = lines
            assert f"{path}:" in line, line
        return str(error)
    return ""


@pytest.mark.parametrize("space", SPACES, ids=lambda path: path.stem)
def test_a_damaged_space_is_planned_or_refused(space: Path, tmp_path: Path) -> None:
    text = space.read_text(encoding="utf-8")
    path = tmp_path / "space.yaml"

    @settings(derandomize=True, deadline=None, max_examples=10, database=None)
    @given(seed=st.integers(0, 2**32), change=st.sampled_from(CHANGES))
    def damage(seed: int, change: Change) -> None:
        path.write_text(change(text, random.Random(seed)), encoding="utf-8", newline="")
        read_or_refuse(path)

    path.write_text(text, encoding="utf-8")
    assert read_or_refuse(path) == ""
    damage()
