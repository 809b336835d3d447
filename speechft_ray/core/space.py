"""Parses a search space: validates its expanded entries, with every mistake reported at once."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from speechft_ray.core.chains import chain_mistakes
from speechft_ray.core.errors import SpecError, nearest_name, unknown_name
from speechft_ray.core.expansion import SAMPLING, expand
from speechft_ray.core.merge_spec import MergeSpec
from speechft_ray.core.metrics import METRICS
from speechft_ray.core.objectives import search_mistakes
from speechft_ray.core.spec_base import RenamedSpec
from speechft_ray.core.specs import (
    EvalSpec,
    FinetuneSpec,
    SearchSpec,
    StopSpec,
    SweepSpec,
)
from speechft_ray.core.validation import AxisError, Mistakes, Steps, explain, path_text

SECTIONS: dict[str, type[BaseModel]] = {
    "finetune": FinetuneSpec,
    "merge": MergeSpec,
    "evaluate": EvalSpec,
}
"""The sections with a list of entries."""


def parse_space(raw: Any, where: str) -> SweepSpec:
    """Returns the sweep that plain data describe. Raises ``SpecError`` with all mistakes."""
    if not isinstance(raw, dict):
        text = "must be a mapping with name, encoder, finetune, merge, evaluate, score."
        raise SpecError(where, [("(file)", text)])
    # Expand and validate the entries of each section, with their indices in the file.
    mistakes: Mistakes = []
    sections: dict[str, list[tuple[int, Any]]] = {}
    displaced: set[str] = set()
    for section, model in SECTIONS.items():
        if section in raw:
            sections[section] = _section(raw[section], section, model, mistakes)
            displaced |= _find_displaced(raw[section], section, raw, mistakes)
    if "merge" not in displaced:
        mistakes += _merge_or_search(raw)
    # Validate the whole. What pydantic says of sections with mistakes repeats them.
    broken = {path.split("[")[0] for path, _ in mistakes} | displaced
    try:
        spec = SweepSpec.model_validate(
            raw | {name: [item for _, item in entries] for name, entries in sections.items()}
        )
    except ValidationError as error:
        mistakes += [item for item in explain(error, (), SweepSpec) if item[0] not in broken]
        raise SpecError(where, mistakes) from None
    # Check names across sections. A donor may be one of the runs that could not be read.
    if "finetune" not in broken:
        chains = chain_mistakes(sections.get("finetune", []))
        mistakes += [
            *chains,
            *_unknown_donors(sections.get("merge", []), {entry.name for entry in spec.finetune}),
        ]
        if spec.search is not None and not chains:
            mistakes += search_mistakes(spec, spec.search)
    mistakes += [*_label_mistakes(sections.get("evaluate", [])), *_score_mistakes(spec)]
    if mistakes:
        raise SpecError(where, mistakes)
    return spec


def old_field_names(raw: Any) -> Mistakes:
    """Returns the path and a sentence of each field that still has its first name."""
    sections: tuple[tuple[str, type[RenamedSpec]], ...] = (
        ("search", SearchSpec),
        ("stop_tuning", StopSpec),
    )
    return [
        (
            f"{section}.{first}",
            f"`{section}.{first}` is now called `{section}.{name}`; the old name is still read.",
        )
        for section, model in sections
        for name, first in model.first_names.items()
        if isinstance(raw, dict) and isinstance(raw.get(section), dict) and first in raw[section]
    ]


def _section(
    value: Any, section: str, model: type[BaseModel], mistakes: Mistakes
) -> list[tuple[int, Any]]:
    """Returns the valid versions of all entries, each with the index of its entry in the file."""
    if not isinstance(value, list):
        mistakes.append((section, "must be a list of entries, each starting with `- `."))
        return []
    valid: list[tuple[int, Any]] = []
    for index, entry in enumerate(value):
        place: Steps = (section, index)
        if _home_of(entry, section):
            continue  # told by `_find_displaced`
        try:
            concrete = list(expand(entry))
        except AxisError as error:
            mistakes.append((path_text((*place, *error.path)), error.sentence))
            continue
        seen: set[tuple[str, str]] = set()
        for item in concrete:
            try:
                valid.append((index, TypeAdapter(model).validate_python(item)))
            except ValidationError as error:
                every = explain(error, place, model, beside=SAMPLING)
                fresh = [mistake for mistake in every if mistake not in seen]
                seen.update(fresh)
                mistakes.extend(fresh)
    return valid


def _find_displaced(value: Any, section: str, raw: dict[str, Any], mistakes: Mistakes) -> set[str]:
    """Adds a mistake for entries that belong to another section, whose line is missing or moved;
    returns those sections."""
    homes: dict[str, None] = {}
    for index, entry in enumerate(value if isinstance(value, list) else []):
        home = _home_of(entry, section)
        if home and home not in homes:
            names = ", ".join(f"`{key}`" for key in entry if key not in _fields(section))
            where = "below that line" if home in raw else f"below a line `{home}:`"
            text = f"has {names}, which are fields of `{home}`: its entries belong {where}."
            mistakes.append((path_text((section, index)), text))
            homes[home] = None
    return {home for home in homes if home not in raw}


def _home_of(entry: Any, section: str) -> str | None:
    """Returns the other section that has all of several fields that this one does not know."""
    keys = set(entry) if isinstance(entry, dict) else set()
    unknown = keys - _fields(section)
    homes = [name for name in SECTIONS if len(unknown) > 1 and unknown <= _fields(name)]
    return homes[0] if homes else None


def _fields(section: str) -> set[str]:
    return {*SECTIONS[section].model_fields, *SAMPLING}


def _merge_or_search(raw: dict[str, Any]) -> Mistakes:
    """Checks that a file either lists its merges or searches them."""
    if raw.get("search") is None:
        if "merge" not in raw:
            unknown = [str(key) for key in raw if key not in SweepSpec.model_fields]
            if {nearest_name(key, SweepSpec.model_fields) for key in unknown} & {"merge", "search"}:
                return []  # it is misspelt, which is told once
            return [("merge", "is needed but missing, unless `search` proposes the merges.")]
        return [("merge", "must have at least 1, but is [] instead.")] if raw["merge"] == [] else []
    return (
        [("merge", "must be left out, since `search` proposes the merges.")]
        if raw.get("merge")
        else []
    )


def _unknown_donors(merges: list[tuple[int, MergeSpec]], names: set[str]) -> Mistakes:
    # Keys of a dict, because an entry with axes has the same mistake in every version.
    mistakes = {
        (f"merge[{index}].donors", unknown_name("fine-tuning run", name, names)): None
        for index, merge in merges
        if merge.donors != "each"
        for name in merge.donors
        if name not in names
    }
    return list(mistakes)


def _label_mistakes(evaluations: list[tuple[int, EvalSpec]]) -> Mistakes:
    """Two evaluations with one label would have the same metrics."""
    mistakes: dict[tuple[str, str], None] = {}
    first: dict[str, int] = {}
    for index, item in evaluations:
        if item.label not in first:
            first[item.label] = index
        elif first[item.label] == index:
            text = f"has several values, and each would be `{item.label}`: list one entry for each"
            mistakes[f"evaluate[{index}]", f"{text}, with a `name` of its own."] = None
        else:
            text = (
                f"evaluates `{item.label}` like evaluate[{first[item.label]}]: give one a `name`."
            )
            mistakes[f"evaluate[{index}]", text] = None
    return list(mistakes)


def _score_mistakes(spec: SweepSpec) -> Mistakes:
    mistakes = [
        (f"score.topline.{name}", unknown_name("metric", name, METRICS))
        for name in spec.score.topline
        if name not in METRICS
    ]
    if not any(item.in_score for item in spec.evaluate):
        mistakes.append(
            (
                "evaluate",
                "must have at least one entry in the score, but all are `in_score: false`.",
            )
        )
    if spec.score.zero == "measured" and not spec.score.topline:
        mistakes.append(
            (
                "score.topline",
                "is needed with `zero: measured`: the value of each metric that counts as 1000.",
            )
        )
    return mistakes
