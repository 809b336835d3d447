"""Makes the reference pages of the documentation from the code: the fields of a search space from
the specs, the options of the command line from typer."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable, Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel, JsonValue
from pydantic.fields import FieldInfo

import speechft_ray.cli  # noqa: F401  # adds the verbs to the application
from speechft_ray.cli.app import app
from speechft_ray.core import specs
from speechft_ray.core.merge_spec import MergeSpec
from speechft_ray.core.resources import StageResources
from speechft_ray.core.spec_base import ConstraintSpec
from speechft_ray.merging.base import METHODS
from speechft_ray.speech.corpora.base import CORPORA
from speechft_ray.speech.heads.base import HEADS
from speechft_ray.superb.tasks.base import TASKS

SECTIONS: tuple[tuple[str, type[BaseModel]], ...] = (
    ("the file", specs.SweepSpec),
    ("finetune[]", specs.FinetuneSpec),
    ("finetune[].objectives[]", specs.Objective),
    ("finetune[].adapter", specs.AdapterSpec),
    ("finetune[].after", specs.AfterSpec),
    ("merge[]", MergeSpec),
    ("search", specs.SearchSpec),
    ("search.constraints[]", ConstraintSpec),
    ("evaluate[]", specs.EvalSpec),
    ("corpus, wherever it stands", specs.CorpusSpec),
    ("score", specs.ScoreSpec),
    ("stop_tuning", specs.StopSpec),
    ("resources.STAGE", StageResources),
)
_BOUNDS = {
    "ge": "≥",
    "gt": ">",
    "le": "≤",
    "lt": "<",
    "min_length": "items ≥",
    "max_length": "items ≤",
}

_WORDS: dict[Any, str] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    JsonValue: "any value",
}
_ABOUT_FIELDS = """\
Made from `speechft_ray/core/specs.py` and from the registered parts. Any value of an entry may be
an axis: `{grid: [...]}`, `{uniform: [low, high]}`, `{loguniform: [low, high]}` or
`{choice: [...]}`; an entry with a drawn axis may have `samples` and `sample_seed`.
`speechft run --set PATH=VALUE` reaches every field: `--set evaluate[0].updates=50`,
`--set finetune[*].seed=3`."""
_ABOUT_VERBS = """\
Made from `speechft --help`. Exit codes: 0 done, 1 some jobs failed, 2 bad input, 75 stopped and
resumable (run the same command again). `speechft --install-completion` installs completion of verbs
and options for bash, zsh, fish or PowerShell."""


def make_fields_page() -> str:
    """Returns the page of all fields of a search space, with types, defaults and meaning."""
    parts = ["# Fields of a search space", _ABOUT_FIELDS]
    for place, model in SECTIONS:
        parts += [f"## `{place}`", _first_paragraph(model), _make_table(model)]
    registries: tuple[tuple[str, Any, str], ...] = (
        ("corpus options", CORPORA, "options"),
        ("head options", HEADS, "options"),
        ("merge method parameters", METHODS, "params"),
        ("task options", TASKS, "options"),
    )
    for title, registry, attribute in registries:
        parts.append(f"## {title.capitalize()}")
        for name, part in registry.items():
            model = getattr(part, attribute)
            if model.model_fields:
                parts += [f"### {title}: `{name}`", _make_table(model)]
    return "\n\n".join(parts) + "\n"


def _make_table(model: type[BaseModel]) -> str:
    docs = read_field_docs(model)
    rows = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        cells = (f"`{name}`", _describe_type(field), _describe_default(field), docs.get(name, ""))
        rows.append(f"| {' | '.join(map(_escape, cells))} |")
    return "\n".join(rows)


def read_field_docs(model: type[BaseModel]) -> dict[str, str]:
    """Returns the text below each field of a model and of its bases; one below several fields is
    of all of them."""
    docs: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        if not (issubclass(kind, BaseModel) and kind is not BaseModel):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
        assert isinstance(body, ast.ClassDef)
        waiting: list[str] = []
        for node in body.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                waiting.append(node.target.id)
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and waiting:
                text = " ".join(str(node.value.value).split())
                docs |= {waiting[-1]: text}
                waiting = []
            else:
                waiting = []
    return docs


def _describe_type(field: FieldInfo) -> str:
    kind = field.annotation
    text = ", ".join([_name_type(kind), *_describe_bounds(field.metadata)])
    return text.replace("items", "letters") if kind is str else text


def _name_type(kind: Any) -> str:
    """Returns a type in words: ``list of whole number, at least 1``."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        metadata = [
            item
            for part in parts[1:]
            for item in (part.metadata if isinstance(part, FieldInfo) else [part])
        ]
        return " ".join([_name_type(parts[0]), *_describe_bounds(metadata)])
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin in (Union, UnionType):
        return " or ".join("nothing" if part is NoneType else _name_type(part) for part in parts)
    if origin in (tuple, list):
        names = list(dict.fromkeys(_name_type(part) for part in parts if part is not Ellipsis))
        count = "" if Ellipsis in parts or origin is list else f"{len(parts)} "
        return f"list of {count}{', '.join(names)}"
    if origin is dict:
        return f"mapping to {_name_type(parts[1])}"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return f"mapping ({kind.__name__})"
    return _WORDS.get(kind, getattr(kind, "__name__", None) or "any value")


def _describe_bounds(metadata: Iterable[Any]) -> list[str]:
    return [
        f"{sign} {getattr(item, name):g}"
        for item in metadata
        for name, sign in _BOUNDS.items()
        if getattr(item, name, None) is not None
    ]


def _describe_default(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, BaseModel):
        return "its defaults"
    return f"`{list(value) if isinstance(value, tuple) else value}`"


def _first_paragraph(model: type[BaseModel]) -> str:
    text = inspect.cleandoc(model.__doc__ or "").partition("\n\n")[0]
    return " ".join(text.replace("``", "`").split())


def _escape(cell: str) -> str:
    return cell.replace("``", "`").replace("|", r"\|")


def make_cli_page() -> str:
    """Returns the page of all verbs with their arguments and options."""
    parts = ["# Command line", _ABOUT_VERBS]
    for path, command in list_commands():
        parts += [f"## speechft {path}", " ".join((command.help or "").split())]
        rows = ["| option | default | meaning |", "|---|---|---|"]
        for param in command.params:
            rows.append(f"| {' | '.join(map(_escape, _describe_param(param)))} |")
        if len(rows) > 2:
            parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"


def list_commands() -> Iterator[tuple[str, Any]]:
    """Yields the words and the command of every verb, sorted."""
    yield from _walk(typer.main.get_command(app), "")


def _walk(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    children = getattr(command, "commands", None)
    if children is None:
        yield path, command
        return
    for name in sorted(children):
        yield from _walk(children[name], f"{path} {name}".strip())


def _describe_param(param: Any) -> tuple[str, str, str]:
    is_argument = param.param_type_name == "argument"
    name = str(param.name).upper() if is_argument else ", ".join(param.opts)
    default = param.default() if callable(param.default) else param.default
    hidden = default is None or default is False or repr(default).startswith("Sentinel")
    shown = "needed" if param.required else "" if hidden else f"`{default}`"
    repeatable = " (repeatable)" if param.multiple or param.nargs == -1 else ""
    return f"`{name}`", shown, f"{param.help or ''}{repeatable}"
