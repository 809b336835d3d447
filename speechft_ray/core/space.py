"""Parses a search space: expands its axes and validates it, with every mistake reported at once.

An axis takes the place of a value: ``alpha: {grid: [0, 0.25, 1]}``. Grids are crossed; ``uniform``,
``loguniform`` and ``choice`` are drawn ``samples`` times per grid point from the entry's
``sample_seed``.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from speechft_ray.core.chains import chain_mistakes
from speechft_ray.core.errors import SpecError, unknown_name
from speechft_ray.core.metrics import METRICS
from speechft_ray.core.objectives import search_mistakes
from speechft_ray.core.specs import (
    EvalSpec,
    FinetuneSpec,
    MergeSpec,
    RenamedSpec,
    SearchSpec,
    StopSpec,
    SweepSpec,
)
from speechft_ray.core.validation import Mistakes, Steps, explain, path_text

AXES = ("grid", "uniform", "loguniform", "choice")
LARGEST_EXPANSION = 100_000
"""Entries that one section may expand to; more is taken for a mistake."""


def parse_space(raw: Any, where: str) -> SweepSpec:
    """Returns the sweep that plain data describe. Raises ``SpecError`` with all mistakes."""
    if not isinstance(raw, dict):
        raise SpecError(
            where,
            [("(file)", "must be a mapping with name, encoder, finetune, merge, evaluate, score.")],
        )
    # Expand and validate the entries of each section, with their indices in the file.
    mistakes: Mistakes = []
    sections: dict[str, list[tuple[int, Any]]] = {}
    for section, model in (
        ("finetune", FinetuneSpec),
        ("merge", MergeSpec),
        ("evaluate", EvalSpec),
    ):
        if section in raw:
            sections[section] = _section(raw[section], section, model, mistakes)
    mistakes += _merge_or_search(raw)
    # Validate the whole. What pydantic says of sections with mistakes repeats them.
    broken = {path.split("[")[0] for path, _ in mistakes}
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
    mistakes += _score_mistakes(spec)
    if mistakes:
        raise SpecError(where, mistakes)
    return spec


def old_field_names(raw: Any) -> list[str]:
    """Returns a sentence for each field of a search space that still has its first name."""
    sections: tuple[tuple[str, type[RenamedSpec]], ...] = (
        ("search", SearchSpec),
        ("stop_tuning", StopSpec),
    )
    return [
        f"`{section}.{first}` is now called `{section}.{name}`; the old name is still read."
        for section, model in sections
        for name, first in model.first_names.items()
        if isinstance(raw, dict) and isinstance(raw.get(section), dict) and first in raw[section]
    ]


def expand(entry: Any) -> Iterator[Any]:
    """Yields the concrete versions of one entry, in the order of its axes.

    Raises ``ValueError`` for a malformed axis.
    """
    # How often axes with a distribution are drawn, and from which seed.
    samples, seed = 1, 0
    if isinstance(entry, dict):
        entry = dict(entry)
        samples, seed = entry.pop("samples", 1), entry.pop("sample_seed", 0)
        if type(samples) is not int or samples < 1:
            raise ValueError(
                f"`samples` must be a whole number of at least 1, but is {samples!r} instead."
            )
        if type(seed) is not int:
            raise ValueError(f"`sample_seed` must be a whole number, but is {seed!r} instead.")
    # The axes of the entry, grids apart from distributions.
    grids: list[tuple[Steps, list[Any]]] = []
    draws: list[tuple[Steps, str, list[Any]]] = []
    for path, kind, values in _axes(entry, ()):
        if kind == "grid":
            grids.append((path, values))
        else:
            draws.append((path, kind, values))
    if samples > 1 and not draws:
        raise ValueError("`samples` needs an axis that is drawn: uniform, loguniform or choice.")
    if math.prod(len(values) for _, values in grids) * samples > LARGEST_EXPANSION:
        raise ValueError(
            f"the axes give more than {LARGEST_EXPANSION} points; make the grids smaller."
        )
    # Every grid point, with `samples` draws each.
    source = random.Random(seed)
    for point in itertools.product(*(values for _, values in grids)):
        for _ in range(samples):
            concrete = entry
            for (path, _), value in zip(grids, point, strict=True):
                concrete = _replace(concrete, path, value)
            for path, kind, values in draws:
                concrete = _replace(concrete, path, _draw(source, kind, values))
            yield concrete


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
        try:
            concrete = list(expand(entry))
        except ValueError as error:
            mistakes.append((path_text(place), str(error)))
            continue
        seen: set[tuple[str, str]] = set()
        for item in concrete:
            try:
                valid.append((index, TypeAdapter(model).validate_python(item)))
            except ValidationError as error:
                fresh = [mistake for mistake in explain(error, place, model) if mistake not in seen]
                seen.update(fresh)
                mistakes.extend(fresh)
    return valid


def _merge_or_search(raw: dict[str, Any]) -> Mistakes:
    """Checks that a file either lists its merges or searches them."""
    if raw.get("search") is None:
        if "merge" not in raw:
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


def _score_mistakes(spec: SweepSpec) -> Mistakes:
    mistakes = [
        (f"score.topline.{name}", unknown_name("metric", name, METRICS))
        for name in spec.score.topline
        if name not in METRICS
    ]
    if spec.score.zero == "measured" and not spec.score.topline:
        mistakes.append(
            (
                "score.topline",
                "is needed with `zero: measured`: the value of each metric that counts as 1000.",
            )
        )
    return mistakes


def _axes(value: Any, path: Steps) -> Iterator[tuple[Steps, str, list[Any]]]:
    if isinstance(value, dict):
        kinds = [key for key in value if key in AXES]
        if len(kinds) == 1 and len(value) == 1:
            yield path, kinds[0], _axis_values(kinds[0], value[kinds[0]], path)
            return
        for key, item in value.items():
            yield from _axes(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _axes(item, (*path, index))


def _axis_values(kind: str, values: Any, path: Steps) -> list[Any]:
    name = path_text(path) or "(entry)"
    if not isinstance(values, list) or not values:
        raise ValueError(
            f"`{name}`: `{kind}` must be a list that is not empty, but is {values!r} instead."
        )
    if kind in ("uniform", "loguniform"):
        numbers = [
            value
            for value in values
            if isinstance(value, int | float) and not isinstance(value, bool)
        ]
        if (
            len(values) != 2
            or len(numbers) != 2
            or not -math.inf < numbers[0] < numbers[1] < math.inf
        ):
            raise ValueError(
                f"`{name}`: `{kind}` must be finite [low, high] with low < high, "
                f"but is {values!r} instead."
            )
        if kind == "loguniform" and numbers[0] <= 0:
            raise ValueError(
                f"`{name}`: `loguniform` needs a low end above 0, but it is {numbers[0]} instead."
            )
    return values


def _draw(source: random.Random, kind: str, values: list[Any]) -> Any:
    if kind == "choice":
        return source.choice(values)
    low, high = values
    if kind == "uniform":
        return source.uniform(low, high)
    return math.exp(source.uniform(math.log(low), math.log(high)))


def _replace(value: Any, path: Steps, leaf: Any) -> Any:
    if not path:
        return leaf
    head, *rest = path
    if isinstance(value, dict):
        return {
            key: _replace(item, tuple(rest), leaf) if key == head else item
            for key, item in value.items()
        }
    return [
        _replace(item, tuple(rest), leaf) if index == head else item
        for index, item in enumerate(value)
    ]
