"""Changes fields of a search space before it is read: ``evaluate[0].updates=50`` on the command
line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from speechft_ray.core.errors import UserError, unknown_name
from speechft_ray.core.specs import SweepSpec
from speechft_ray.core.validation import Steps, path_text
from speechft_ray.sweep.yaml_text import YamlError, load_yaml

EXAMPLES = "for example --set evaluate[0].updates=50 or --set 'merge[*].alpha={grid: [0.1, 0.5]}'"
ALL = "*"
_STEP = re.compile(r'\.?(?:"(?P<quoted>[^"]+)"|(?P<name>[^.\[\]"=]+))|\[(?P<index>\d{1,9}|\*)\]')
_FLAT = ("score", "topline")
"""A mapping whose keys have dots of their own (``pr.per``): the rest of a path is one key."""


class Change(NamedTuple):
    """A field of a search space and its new value."""

    text: str
    """As it was written, without the value."""
    path: Steps
    value: Any


def parse_changes(texts: Sequence[str]) -> list[Change]:
    """Reads ``PATH=VALUE``; the value is YAML and never evaluated. Raises ``UserError``."""
    return [_parse(text) for text in texts]


def make_changes(values: Mapping[str, Any]) -> list[Change]:
    """Returns the changes of values by path. Raises ``UserError``."""
    return [_parse(f"{path}=null")._replace(value=value) for path, value in values.items()]


def _parse(text: str) -> Change:
    steps: list[str | int] = []
    place = 0
    while place < len(text) and text[place] != "=":
        step = _STEP.match(text, place)
        if step is None:
            break
        steps.append(_read_step(step))
        place = step.end()
    if not steps or text[place : place + 1] != "=" or isinstance(steps[0], int) or ALL in steps[:1]:
        raise UserError(f"`--set {text}` must be PATH=VALUE: {EXAMPLES}.")
    if tuple(steps[:2]) == _FLAT and len(steps) > 2:
        steps = [*_FLAT, ".".join(map(str, steps[2:]))]
    try:
        value = load_yaml(text[place + 1 :])
    except YamlError as error:
        raise UserError(
            f"`--set {text}` has a value that is not YAML ({error.sentence.rstrip('.')}): put text "
            "with special characters in quotes."
        ) from None
    return Change(text[:place], tuple(steps), value)


def _read_step(step: re.Match[str]) -> str | int:
    if (index := step["index"]) is not None:
        return int(index) if index != ALL else ALL
    return step["quoted"] or step["name"]


def apply_changes(data: Any, changes: Sequence[Change]) -> list[str]:
    """Changes the plain data of a search space in place and returns the paths that were changed.

    A mapping that is not there is made, so that defaults can be changed too; an entry of a list
    must be there. Raises ``UserError`` for a path that leads nowhere. Unknown fields are left to
    the parser of search spaces.
    """
    return [path for change in changes for path in _apply(data, change, ())]


def _apply(value: Any, change: Change, done: Steps) -> list[str]:
    """Changes what the path leads to from ``value``, where its steps ``done`` lead."""
    step, rest = change.path[len(done)], change.path[len(done) + 1 :]
    if isinstance(value, list):
        places = _select(value, step, change, done)
        if not rest:
            for place in places:
                value[place] = change.value
            return [path_text((*done, place)) for place in places]
        return [
            path
            for place in places
            for path in _apply(value[place], _at(change, done, place), (*done, place))
        ]
    if not isinstance(value, dict) or _is_index(step):
        what = "is no list" if _is_index(step) else f"is {value!r}, which has no fields,"
        raise UserError(
            f"--set {change.text}: `{path_text(done)}` {what} in this search space: set the whole "
            "of it."
        )
    if not done and step not in SweepSpec.model_fields:
        sentence = unknown_name("field", str(step), SweepSpec.model_fields)
        raise UserError(f"--set {change.text}: {sentence}")
    path = (*done, step)
    if not rest:
        value[step] = change.value
        return [path_text(path)]
    if value.get(step) is None:
        if _is_index(rest[0]):
            raise UserError(
                f"--set {change.text}: this search space has no `{path_text(path)}`: set the whole "
                "list."
            )
        value[step] = {}
    return _apply(value[step], change, path)


def _is_index(step: str | int) -> bool:
    return isinstance(step, int) or step == ALL


def _at(change: Change, done: Steps, place: int) -> Change:
    return change._replace(path=(*done, place, *change.path[len(done) + 1 :]))


def _select(values: list[Any], step: str | int, change: Change, done: Steps) -> range:
    where = path_text(done)
    if step == ALL:
        return range(len(values))
    if isinstance(step, int) and step < len(values):
        return range(step, step + 1)
    last = len(values) - 1
    raise UserError(
        f"--set {change.text}: `{where}` is a list here: write {where}[0] to {where}[{last}] for "
        f"one entry, or {where}[{ALL}] for all."
        if values
        else f"--set {change.text}: `{where}` is an empty list here: set the whole of it."
    )
