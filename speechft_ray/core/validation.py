"""Validates plain data as a model and words every mistake, with its path."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from speechft_ray.core.errors import SpecError, did_you_mean, nearest_name, unknown_name

AXES = ("grid", "uniform", "loguniform", "choice")
"""Names of the axes that are expanded before a sweep."""

M = TypeVar("M", bound=BaseModel)

Steps = tuple[str | int, ...]
Mistakes = list[tuple[str, str]]
Error = Mapping[str, Any]
"""One of pydantic's errors: ``type``, ``loc``, ``msg``, ``input``, ``ctx``."""

_PHRASES = {
    "missing": "is needed but missing.",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than_equal": "must be at most {le:g}",
    "greater_than": "must be greater than {gt:g}",
    "less_than": "must be less than {lt:g}",
    "too_short": "must have at least {min_length}",
    "too_long": "must have at most {max_length}",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "finite_number": "must be a finite number",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "string_type": "must be text",
    "invalid_key": "must be text, since it is a key",
    "invalid-json-value": "must be text, a number, true, false, null, a list or a mapping",
}


_KIND_PHRASES = {
    kind: phrase
    for kind, phrase in _PHRASES.items()
    if kind.endswith(("_type", "_parsing")) or kind == "int_from_float"
} | {"literal_error": ""}
"""Errors of a value of another kind; the others concern a value of the right kind."""

_JSON_KINDS = frozenset({"str", "int", "float", "bool", "list", "dict", "NoneType"})


class AxisError(ValueError):
    """What is wrong with the axes of an entry; ``path`` leads to the axis within the entry."""

    def __init__(self, path: Steps, sentence: str) -> None:
        super().__init__(f"`{path_text(path)}`: {sentence}" if path else sentence)
        self.path, self.sentence = path, sentence


def validate(model: type[M], raw: Any, where: str) -> M:
    """Returns ``raw`` as a ``model``. Raises ``SpecError`` with every mistake in ``where``."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise SpecError(where, explain(error, (), model)) from None


def explain(
    error: ValidationError, place: Steps, model: type[BaseModel], beside: Sequence[str] = ()
) -> Mistakes:
    """Returns pydantic's errors as ``(path, sentence)``, one for each wrong value.

    ``place`` comes before each path. An unknown field has the nearest name; ``beside`` are names
    that may stand beside the fields of ``model``. A needed field that is only misspelt is not told
    as missing too.
    """
    errors = [item for item in error.errors() if not _is_echo(item, error)]
    # The errors of one union are those of its sides; they are told as one.
    unions: dict[Steps, list[Error]] = {}
    for item in errors:
        head, side = _split_at_side(item["loc"])
        if side is not None:
            unions.setdefault(head, []).append(item)
    mistakes: dict[tuple[str, str], None] = {}
    misspelt: set[Steps] = set()
    for item in errors:
        head, side = _split_at_side(item["loc"])
        sides = unions.get(head, []) if side is not None else []
        if len({_split_at_side(other["loc"])[1] for other in sides}) > 1:
            worded = _word_union(head, sides)
        else:
            worded = [(item["loc"], _word(item, model, beside))]
        if item["type"] == "extra_forbidden":
            near = nearest_name(str(item["loc"][-1]), _fields_at(model, item["loc"][:-1]))
            if near is not None:
                misspelt.add((*item["loc"][:-1], near))
        for loc, sentence in worded:
            path = path_text((*place, *(part for part in loc if not _is_branch(part))))
            mistakes[path or "(all)", sentence] = None
    echoes = {path_text((*place, *loc)) for loc in misspelt}
    return [item for item in mistakes if item[1] != _PHRASES["missing"] or item[0] not in echoes]


def axis_hint(value: Any, axes: Iterable[str] = AXES) -> str:
    """Returns a sentence for a mapping in the place of a value that looks like a misspelt or
    misplaced axis; empty for others."""
    keys = [key for key in value if isinstance(key, str)] if isinstance(value, dict) else []
    for key in keys:
        if key in axes and len(value) > 1:
            others = ", ".join(f"`{other}`" for other in keys if other != key)
            return (
                f" An axis stands alone in its mapping: move {others} out of that of `{key}`; "
                "`samples` and `sample_seed` belong beside the fields of the entry."
            )
        if key in axes:
            return f" No axis (`{key}`) can stand here."
    near = nearest_name(keys[0], axes) if keys and len(value) == 1 else None
    return f" Did you mean the axis `{near}`?" if near else ""


def path_text(path: tuple[Any, ...]) -> str:
    """Returns ``("merge", 0, "alpha")`` as ``merge[0].alpha``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else str(part))
    return text


def _word(item: Error, model: type[BaseModel], beside: Sequence[str] = ()) -> str:
    """Words one error that stands for itself."""
    kind, context, value, loc = item["type"], item.get("ctx", {}), item["input"], item["loc"]
    if kind == "extra_forbidden":
        allowed = [*_fields_at(model, loc[:-1]), *(beside if len(loc) == 1 else ())]
        name = str(loc[-1])
        sentence = unknown_name("field", name, allowed)
        if nearest_name(name, allowed) is None and isinstance(value, list):
            sentence += axis_hint({name: value})
        return sentence
    if kind == "missing":
        return _PHRASES[kind]
    if kind == "value_error":  # a validator of this package, which words the sentence
        return f"{_wish(item['msg'])}."
    wish = _PHRASES[kind].format(**context) if kind in _PHRASES else _wish(item["msg"])
    hint = axis_hint(value)
    if kind == "literal_error" and isinstance(value, str):
        hint = did_you_mean(value, _literals(item))
    return f"{wish}, but is {_short(value)} instead.{hint}"


def _word_union(head: Steps, sides: Sequence[Error]) -> list[tuple[Steps, str]]:
    """Words the errors of all sides of a union as those of the side that was meant.

    That is the side whose kind the value has, where there is one. Otherwise all sides are named.
    """
    ends = len(head) + 1
    inside = [item for item in sides if any(not _is_branch(part) for part in item["loc"][ends:])]
    values = [item for item in sides if item["type"] not in _KIND_PHRASES]
    if meant := inside or values:
        return [(item["loc"], _word(item, BaseModel)) for item in meant]
    wishes, literals = [], []
    for item in sides:
        if item["type"] == "literal_error":
            literals += _literals(item)
        wish = item.get("ctx", {}).get("expected") or _KIND_PHRASES[item["type"]]
        wishes.append(str(wish).removeprefix("must be "))
    value = sides[0]["input"]
    names = list(dict.fromkeys(wishes))
    wish = f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else names[0]
    hint = did_you_mean(value, literals) if isinstance(value, str) else axis_hint(value)
    return [(head, f"must be {wish}, but is {_short(value)} instead.{hint}")]


def _literals(item: Error) -> list[str]:
    return re.findall(r"'([^']*)'", str(item.get("ctx", {}).get("expected", "")))


def _split_at_side(loc: Steps) -> tuple[Steps, str | int | None]:
    """Returns the steps before the first that names the side of a union, and that name."""
    for index, part in enumerate(loc):
        if _is_branch(part):
            return loc[:index], part
    return loc, None


def _is_echo(item: Error, error: ValidationError) -> bool:
    """Whether an error only repeats others: a list whose entries are wrong counts as too short."""
    loc = item["loc"]
    return item["type"] == "too_short" and any(
        other["loc"][: len(loc)] == loc and len(other["loc"]) > len(loc) for other in error.errors()
    )


def _is_branch(part: str | int) -> bool:
    """Whether a step is pydantic's name for a side of a union or a kind of JSON value, which the
    user did not write."""
    return (
        str(part).startswith(("function-", "literal[", "tuple[", "constrained-"))
        or part in _JSON_KINDS
    )


def _wish(message: str) -> str:
    """Returns ``must be x`` for ``Input should be x`` and the like."""
    _, should, rest = message.removeprefix("Value error, ").partition(" should ")
    return f"must {rest}" if should else message.removeprefix("Value error, ")


def _fields_at(model: type[BaseModel], loc: Steps) -> list[str]:
    current: Any = model
    for part in loc:
        field = None if isinstance(part, int) else getattr(current, "model_fields", {}).get(part)
        if field is None:
            continue
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        current = next(
            (item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel)),
            current,
        )
    return list(getattr(current, "model_fields", {}))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
