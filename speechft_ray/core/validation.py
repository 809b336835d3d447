"""Validates plain data as a model and words every mistake, with its path."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from speechft_ray.core.errors import SpecError, unknown_name

M = TypeVar("M", bound=BaseModel)

Steps = tuple[str | int, ...]
Mistakes = list[tuple[str, str]]

_PHRASES = {
    "missing": "is needed but missing.",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than_equal": "must be at most {le:g}",
    "greater_than": "must be greater than {gt:g}",
    "less_than": "must be less than {lt:g}",
    "too_short": "must have at least {min_length}",
    "finite_number": "must be a finite number",
    "tuple_type": "must be a list",
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


_JSON_KINDS = frozenset({"str", "int", "float", "bool", "list", "dict", "NoneType"})


def validate(model: type[M], raw: Any, where: str) -> M:
    """Returns ``raw`` as a ``model``. Raises ``SpecError`` with every mistake in ``where``."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise SpecError(where, explain(error, (), model)) from None


def explain(error: ValidationError, place: Steps, model: type[BaseModel]) -> Mistakes:
    """Returns pydantic's errors as ``(path, sentence)``; an unknown field has the nearest name.

    ``place`` comes before each path.
    """
    mistakes: Mistakes = []
    for item in error.errors():
        if _is_echo(item["type"], item["loc"], item["input"]):
            continue
        path = (
            path_text((*place, *(part for part in item["loc"] if not _is_branch(part)))) or "(all)"
        )
        kind, context = item["type"], item.get("ctx", {})
        if kind == "extra_forbidden":
            sentence = unknown_name(
                "field", str(item["loc"][-1]), _fields_at(model, item["loc"][:-1])
            )
        elif kind == "missing":
            sentence = _PHRASES[kind]
        elif kind == "literal_error" and any(_is_branch(part) for part in item["loc"]):
            sentence = (
                f"must be {context['expected']} or a list, but is {_short(item['input'])} instead."
            )
        elif kind in _PHRASES:
            sentence = (
                f"{_PHRASES[kind].format(**context)}, but is {_short(item['input'])} instead."
            )
        elif kind == "value_error":  # a validator of this package, which words the sentence
            sentence = f"{_wish(item['msg'])}."
        else:
            sentence = f"{_wish(item['msg'])}, but is {_short(item['input'])} instead."
        mistakes.append((path, sentence))
    return mistakes


def path_text(path: tuple[Any, ...]) -> str:
    """Returns ``("merge", 0, "alpha")`` as ``merge[0].alpha``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else str(part))
    return text


def _is_echo(kind: str, loc: Steps, value: Any) -> bool:
    """Whether an error only repeats another one of the same input.

    A text in the place of ``"each" | list`` fails as both; a list whose entries are all wrong
    counts as too short.
    """
    in_literal, in_list = (
        any(str(part).startswith(name) for part in loc) for name in ("literal[", "tuple[")
    )
    if kind == "too_short":
        return len(value) > 0
    return (in_literal and isinstance(value, list | tuple)) or (in_list and kind == "tuple_type")


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
